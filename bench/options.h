/* bench: the options of a run, shared by the subcommands that run one. A subcommand's table is put
 * together from these rows, so a flag means the same everywhere; values that a table leaves out keep
 * the defaults of shl_run_options_init. */
#ifndef SHL_BENCH_OPTIONS_H
#define SHL_BENCH_OPTIONS_H

#include "bench/ds_options.h"
#include "bench/session.h"
#include "kernels/base/option.h"
#include "kernels/base/str.h"

/* Lists (shl_sweep_*) are marked; the rest is one value for all rows of a sweep. */
typedef struct shl_run_options {
    const char *model, *strategy, *ranks;                /* lists */
    const char *batch, *seq, *accum;                     /* lists */
    const char *reduce_every, *bucket, *prefetch, *seed; /* lists */
    int64_t layers, width, heads, vocab, context;        /* 0: the preset's */
    int64_t inner, kv_heads, head_dim;                   /* 0: the preset's */
    double norm_eps, rope_theta;                         /* 0: the preset's */
    const char *rope_scaling;                            /* NULL: the preset's */
    int family, tied, qkv_bias;
    bool approximate;
    const char *init_from;
    shl_ds_options ds;
    int64_t steps;
    int optimizer;
    /* -1: the optimizer's own */
    double lr, eps, weight_decay, momentum, dampening, min_coeff, max_coeff;
    bool nesterov;
    int bias_correction;
    double min_lr_ratio, clip;
    const char *betas; /* NULL: the optimizer's own */
    int schedule;
    int64_t schedule_steps, warmup; /* schedule_steps 0: steps */
    const char *data, *val_data;
    const char *data_seed; /* list; NULL: the seed */
    const char *recompute; /* list */
    int64_t recompute_every, train_last, lora_rank;
    const char *freeze, *lora_targets;
    double lora_alpha, dropout, attention_dropout;
    const char *zero;
    bool explain;
    bool lora_base;
    int shuffle;
    double val_split;
    int64_t eval_every, eval_batches;
    int64_t threads; /* 0: cores / ranks */
    int device, as, launch, comm, attention;
    bool share_gpu, tf32;
    size_t device_memory_bytes, host_memory_bytes, pin_limit_bytes;
    const char *offload_optimizer, *offload_param; /* lists */
    int offload_activations;
    double offload_ratio;
    bool pin_memory;
    int64_t sub_group_size;
    const char *link;
    const char *ckpt_dir;
    int64_t save_every;
    bool resume;
    double timeout_s;
    const char *dtype; /* list */
    int master_dtype, reduce_dtype, grad_dtype, moment_dtype;
    const char *loss_scale;
    int64_t initial_scale_power, loss_scale_window, hysteresis;
    bool consecutive_hysteresis;
    double min_loss_scale;
    bool check_overflow;
    bool json, jsonl, csv, md;
    int convention, emit; /* plan */
    const char *out;
    bool timeline;
    int64_t row, result_fd; /* hidden: which row a rank process runs, and where it reports */
} shl_run_options;

extern const char *const shl_choices_schedule[];
extern const char *const shl_choices_convention[];
extern const char *const shl_choices_emit[];
extern const char *const shl_choices_family[];
extern const char *const shl_choices_preset[];
extern const char *const shl_choices_device[];
extern const char *const shl_choices_as[];
extern const char *const shl_choices_launch[];
extern const char *const shl_choices_comm[];
extern const char *const shl_choices_attention[];
extern const char *const shl_choices_shuffle[];
extern const char *const shl_choices_dtype[];
extern const char *const shl_choices_offload[];

/* clang-format off */
#define SHL_ROW(name, type, member, min, max, fallback, choices, unit, group, help)                  \
    {name, NULL, type, offsetof(shl_run_options, member), min, max, fallback, choices, unit, group,  \
     help}

#define SHL_ROWS_MODEL                                                                               \
    SHL_ROW("model", SHL_OPT_LIST, model, 0, 0, NULL, NULL, "presets", "Model",               \
            "A preset, a size such as 7b (info models lists both), or a path to a config.json; default "     \
            "gpt2-tiny."),                                                                           \
    SHL_ROW("layers", SHL_OPT_COUNT, layers, 1, 10000,  NULL, NULL, NULL, "Model",                   \
            "Blocks, instead of the preset's."),                                                     \
    SHL_ROW("width", SHL_OPT_COUNT, width, 1, 1e7, NULL, NULL, NULL, "Model",                        \
            "Channels, instead of the preset's."),                                                   \
    SHL_ROW("heads", SHL_OPT_COUNT, heads, 1, 1e6, NULL, NULL, NULL, "Model",                        \
            "Attention heads, instead of the preset's."),                                            \
    SHL_ROW("vocab", SHL_OPT_COUNT, vocab, 1, 1e8, NULL, NULL, NULL, "Model",                        \
            "Size of the vocabulary, instead of the preset's."),                                     \
    SHL_ROW("context", SHL_OPT_COUNT, context, 1, 1e8, NULL, NULL, NULL, "Model",                    \
            "Longest sequence, instead of the preset's."),                                           \
    SHL_ROW("family", SHL_OPT_ENUM, family, 0, 0, "preset", shl_choices_family, NULL, "Model",       \
            "Kind of model."),                                                                       \
    SHL_ROW("kv-heads", SHL_OPT_COUNT, kv_heads, 1, 1e6, NULL, NULL, NULL, "Model",                  \
            "Heads of keys and values (llama), instead of the preset's."),                           \
    SHL_ROW("inner", SHL_OPT_COUNT, inner, 1, 1e9, NULL, NULL, NULL, "Model",                        \
            "Inner width of the MLP, instead of the preset's."),                                     \
    SHL_ROW("head-dim", SHL_OPT_COUNT, head_dim, 1, 1e6, NULL, NULL, NULL, "Model",                  \
            "Size of a head (llama); default width / heads."),                                       \
    SHL_ROW("rope-theta", SHL_OPT_DOUBLE, rope_theta, 1, 1e15, NULL, NULL, NULL, "Model",            \
            "Base of the rotary angles (llama), instead of the preset's."),                          \
    SHL_ROW("rope-scaling", SHL_OPT_STRING, rope_scaling, 0, 0, NULL, NULL, NULL, "Model",           \
            "none, linear:FACTOR or llama3:FACTOR:LOW:HIGH:CONTEXT (llama)."),                       \
    SHL_ROW("qkv-bias", SHL_OPT_ENUM, qkv_bias, 0, 0, "preset", shl_choices_preset, NULL, "Model",   \
            "Biases of queries, keys and values (llama)."),                                          \
    SHL_ROW("tied", SHL_OPT_ENUM, tied, 0, 0, "preset", shl_choices_preset, NULL, "Model",           \
            "Whether the head shares the token embedding."),                                         \
    SHL_ROW("norm-eps", SHL_OPT_DOUBLE, norm_eps, 1e-30, 1, NULL, NULL, NULL, "Model",               \
            "Epsilon of the norms, instead of the preset's."),                                       \
    SHL_ROW("approximate", SHL_OPT_BOOL, approximate, 0, 0, NULL, NULL, NULL, "Model",               \
            "Also trains a shape whose original computes something else (info models).")

#define SHL_ROW_INIT_FROM                                                                            \
    SHL_ROW("init-from", SHL_OPT_STRING, init_from, 0, 0, NULL, NULL, "folder", "Model",             \
            "Initial parameters from a Hugging Face folder (safetensors) instead of --seed; its "            \
            "config.json is the default of --model.")

#define SHL_ROWS_WORLD(strategies, world)                                                            \
    SHL_ROW("strategy", SHL_OPT_LIST, strategy, 0, 0, strategies, NULL, NULL, "World",               \
            "What is sharded: ddp, zero1, zero2, zero3, fsdp, fsdp-grad-op."),                       \
    SHL_ROW("ranks", SHL_OPT_LIST, ranks, 0, 0, world, NULL, NULL, "World",                          \
            "Data-parallel ranks: a list or a range such as 1-8*2."),                                \
    SHL_ROW("reduce-every", SHL_OPT_LIST, reduce_every, 0, 0, "auto", NULL, NULL, "World",           \
            "When gradients are reduced: auto, micro (each micro-step), boundary."),                 \
    SHL_ROW("bucket", SHL_OPT_LIST, bucket, 0, 0, "16777216", NULL, "elements", "World",             \
            "Largest reduction bucket of ddp and zero."),                                            \
    SHL_ROW("prefetch", SHL_OPT_LIST, prefetch, 0, 0, NULL, NULL, "gathers", "World",                \
            "Gather groups issued ahead by zero3 (default 8) and fsdp (default 1).")

#define SHL_ROWS_BATCH                                                                               \
    SHL_ROW("batch", SHL_OPT_LIST, batch, 0, 0, "4", NULL, "sequences per rank", "Batch",            \
            "Micro-batch."),                                                                         \
    SHL_ROW("seq", SHL_OPT_LIST, seq, 0, 0, NULL, NULL, "tokens", "Batch",                           \
            "Sequence length; default the context, at most 128."),                                   \
    SHL_ROW("accum", SHL_OPT_LIST, accum, 0, 0, "1", NULL, "micro-steps", "Batch",                   \
            "Micro-steps per optimizer step.")

/* Dtypes by role, and the loss scale that 16 bits need. */
#define SHL_ROWS_DTYPE                                                                               \
    SHL_ROW("dtype", SHL_OPT_LIST, dtype, 0, 0, "fp32", NULL, NULL, "Dtypes",                        \
            "Of parameters in use, activations and gathers: fp32, bf16, fp16."),                     \
    SHL_ROW("master-dtype", SHL_OPT_ENUM, master_dtype, 0, 0, "fp32", shl_choices_dtype, NULL,       \
            "Dtypes", "Of the weights that are updated: fp32, or as --dtype."),                      \
    SHL_ROW("reduce-dtype", SHL_OPT_ENUM, reduce_dtype, 0, 0, "fp32", shl_choices_dtype, NULL,       \
            "Dtypes", "Of gradients while ranks are summed: fp32, or as --dtype."),                  \
    SHL_ROW("grad-dtype", SHL_OPT_ENUM, grad_dtype, 0, 0, "fp32", shl_choices_dtype, NULL,           \
            "Dtypes", "Of gradients while they accumulate: fp32, or as --dtype."),                   \
    SHL_ROW("moment-dtype", SHL_OPT_ENUM, moment_dtype, 0, 0, "fp32", shl_choices_dtype, NULL,       \
            "Dtypes", "Of the optimizer's moments: fp32 or bf16."),                                          \
    SHL_ROW("loss-scale", SHL_OPT_STRING, loss_scale, 0, 0, "none", NULL, NULL, "Dtypes",            \
            "none, dynamic, or a number; fp16 needs one of the latter."),                            \
    SHL_ROW("initial-scale-power", SHL_OPT_INT, initial_scale_power, 0, 1000, "16", NULL, NULL,      \
            "Dtypes", "A dynamic scale starts at 2 to this."),                                       \
    SHL_ROW("loss-scale-window", SHL_OPT_COUNT, loss_scale_window, 1, 1e15, "1000", NULL, "steps",   \
            "Dtypes", "Clean steps until a dynamic scale doubles."),                                 \
    SHL_ROW("hysteresis", SHL_OPT_INT, hysteresis, 1, 1e9, "2", NULL, "overflows", "Dtypes",         \
            "Overflows until a dynamic scale halves for the first time."),                           \
    SHL_ROW("consecutive-hysteresis", SHL_OPT_BOOL, consecutive_hysteresis, 0, 0, NULL, NULL, NULL,  \
            "Dtypes", "Every clean step refills the hysteresis."),                                   \
    SHL_ROW("min-loss-scale", SHL_OPT_DOUBLE, min_loss_scale, 1e-30, 1e30, "1", NULL, NULL,          \
            "Dtypes", "A dynamic scale does not fall below; an overflow there ends the run."),       \
    SHL_ROW("check-overflow", SHL_OPT_BOOL, check_overflow, 0, 0, NULL, NULL, NULL, "Dtypes",        \
            "Skips steps whose gradients are not finite without a loss scale too.")

#define SHL_ROW_CLIP                                                                                 \
    SHL_ROW("clip", SHL_OPT_DOUBLE, clip, 0, 1e30, "0", NULL, NULL, "Optimizer",                     \
            "Largest global gradient norm; 0 does not clip.")

#define SHL_ROWS_OPTIMIZER                                                                           \
    SHL_ROW("optimizer", SHL_OPT_ENUM, optimizer, 0, 0, "adamw", shl_optim_names, NULL, "Optimizer", \
            "adam has its decay in the gradient, adamw on the parameter. adagrad, lion and sgd with "  \
            "momentum keep one moment, sgd without none, the others two."),                          \
    SHL_ROW("momentum", SHL_OPT_ASKED, momentum, 0, 1, NULL, NULL, NULL, "Optimizer",         \
            "Of sgd; default 0."),                                                                   \
    SHL_ROW("dampening", SHL_OPT_ASKED, dampening, 0, 1, NULL, NULL, NULL, "Optimizer",              \
            "Of sgd's momentum: gradients after the first enter it by 1 - this; default 0."),        \
    SHL_ROW("nesterov", SHL_OPT_BOOL, nesterov, 0, 0, NULL, NULL, NULL, "Optimizer",                 \
            "Nesterov's momentum of sgd."),                                                          \
    SHL_ROW("bias-correction", SHL_OPT_ENUM, bias_correction, 0, 0, "on", shl_choices_shuffle, NULL, \
            "Optimizer", "Of the moments of adamw, adam and lamb."),                                 \
    SHL_ROW("lr", SHL_OPT_ASKED, lr, 0, 1e6, NULL, NULL, NULL, "Optimizer",                          \
            "Learning rate; default 0.001, adagrad 0.01."),                                          \
    SHL_ROW("schedule", SHL_OPT_ENUM, schedule, 0, 0, "constant", shl_choices_schedule, NULL,        \
            "Optimizer", "Learning rate after the warm-up."),                                        \
    SHL_ROW("schedule-steps", SHL_OPT_COUNT, schedule_steps, 1, 1e15, NULL, NULL, "steps",           \
            "Optimizer", "Where linear and cosine end; default --steps."),                           \
    SHL_ROW("warmup", SHL_OPT_COUNT, warmup, 0, 1e15, "0", NULL, "steps", "Optimizer",               \
            "Linear warm-up."),                                                                      \
    SHL_ROW("min-lr-ratio", SHL_OPT_DOUBLE, min_lr_ratio, 0, 1, "0", NULL, NULL, "Optimizer",        \
            "Last learning rate / --lr."),                                                           \
    SHL_ROW("betas", SHL_OPT_STRING, betas, 0, 0, NULL, NULL, NULL, "Optimizer",                     \
            "Decay of the two moments (adagrad and sgd have none); default adamw 0.9,0.95, adam and "  \
            "lamb 0.9,0.999, lion 0.9,0.99."),                                                       \
    SHL_ROW("eps", SHL_OPT_ASKED, eps, 1e-30, 1, NULL, NULL, NULL, "Optimizer",                      \
            "Added to the root of the second moment (lion and sgd have none); default 1e-08, adagrad "  \
            "1e-10."),                                                                               \
    SHL_ROW("weight-decay", SHL_OPT_ASKED, weight_decay, 0, 1e6, NULL, NULL, NULL, "Optimizer",      \
            "On tensors of two or more dimensions: decoupled (adamw, lion, lamb), or added to the "    \
            "gradient (adam, adagrad, sgd); default adamw 0.1, the others 0."),                      \
    SHL_ROW("min-coeff", SHL_OPT_ASKED, min_coeff, 0, 1e30, NULL, NULL, NULL, "Optimizer",           \
            "Least trust ratio of lamb; default 0.01."),                                             \
    SHL_ROW("max-coeff", SHL_OPT_ASKED, max_coeff, 0, 1e30, NULL, NULL, NULL, "Optimizer",           \
            "Largest trust ratio of lamb; default 10."),                                             \
    SHL_ROW_CLIP

#define SHL_ROWS_RUN                                                                                 \
    SHL_ROW("steps", SHL_OPT_COUNT, steps, 1, 1e15, "10", NULL, NULL, "Run",                         \
            "The step number to reach."),                                                            \
    SHL_ROW("seed", SHL_OPT_LIST, seed, 0, 0, "0", NULL, NULL, "Run",                                \
            "Decides initial parameters, and the order of the data unless --data-seed does."),                                \
    SHL_ROW("data", SHL_OPT_STRING, data, 0, 0, NULL, NULL, NULL, "Run",                             \
            "A text file (its bytes are the tokens), an llm.c .bin file, or synthetic; default the " \
            "bundled Shakespeare."),                                                                 \
    SHL_ROW("data-seed", SHL_OPT_LIST, data_seed, 0, 0, NULL, NULL, NULL, "Run",                     \
            "Decides the order of the data, and synthetic data; default --seed."),                   \
    SHL_ROW("shuffle", SHL_OPT_ENUM, shuffle, 0, 0, "on", shl_choices_shuffle, NULL, "Run",          \
            "Each epoch in an order of its own, or in that of the file."),                           \
    SHL_ROW("device", SHL_OPT_ENUM, device, 0, 0, "cpu", shl_choices_device, NULL, "Run",            \
            "cpu and cuda (one GPU per rank) compute; virtual accounts for everything and computes " \
            "nothing."),                                                                             \
    SHL_ROW("launch", SHL_OPT_ENUM, launch, 0, 0, "auto", shl_choices_launch, NULL, "Run",           \
            "What ranks are; auto: threads, and processes where they talk by nccl; there torchrun, "          \
            "mpirun and srun may have started them. launcher: they have."),                \
    SHL_ROW("timeout", SHL_OPT_DOUBLE, timeout_s, 0.1, 86400, "30", NULL, "seconds", "Run",          \
            "A rank that has not arrived by then is named and the run ends.")

#define SHL_ROW_ZERO                                                                                 \
    SHL_ROW("zero", SHL_OPT_STRING, zero, 0, 0, NULL, NULL, "keys", "World",                         \
            "DeepSpeed's keys of zero_optimization as KEY=VALUE;KEY=VALUE, the others at its "       \
            "defaults; also leaf_names, leaf_suffixes and layout=single-cut; default none.")

#define SHL_ROWS_TUNE                                                                                \
    SHL_ROW("recompute", SHL_OPT_LIST, recompute, 0, 0, "none", NULL, NULL, "Tuning",                \
            "What backward makes again instead of keeping it: none, selective (attention), full "    \
            "(blocks)."),                                                                            \
    SHL_ROW("recompute-every", SHL_OPT_COUNT, recompute_every, 1, 1e6, NULL, NULL, "blocks",         \
            "Tuning", "With full: only every k-th block; default 1."),                               \
    SHL_ROW("freeze", SHL_OPT_STRING, freeze, 0, 0, NULL, NULL, NULL, "Tuning",                      \
            "Parameters that stay as they are, by name or its beginning up to a dot, * for "         \
            "anything: wte,h.0,*.bias."),                                                            \
    SHL_ROW("train-last", SHL_OPT_COUNT, train_last, 1, 1e6, NULL, NULL, "blocks", "Tuning",         \
            "Trains only the last blocks and what is behind them; default all."),                    \
    SHL_ROW("lora-rank", SHL_OPT_COUNT, lora_rank, 1, 1e6, NULL, NULL, NULL, "Tuning",               \
            "Trains low-rank adapters of this rank; what they stand on is frozen."),                 \
    SHL_ROW("lora-alpha", SHL_OPT_DOUBLE, lora_alpha, 0, 1e9, NULL, NULL, NULL, "Tuning",            \
            "Their scale is alpha / rank; default the rank."),                                       \
    SHL_ROW("lora-targets", SHL_OPT_STRING, lora_targets, 0, 0, NULL, NULL, NULL, "Tuning",          \
            "Modules that get one, by the end of their path: c_attn,mlp.c_proj; default every linear "\
            "one."),                                                                                 \
    SHL_ROW("lora-base", SHL_OPT_BOOL, lora_base, 0, 0, NULL, NULL, NULL, "Tuning",                  \
            "Trains what the adapters stand on as well."),                                           \
    SHL_ROW("dropout", SHL_OPT_DOUBLE, dropout, 0, 0.999, "0", NULL, NULL, "Tuning",                 \
            "Of the embedding's output and of residual branches, while training."),                  \
    SHL_ROW("attention-dropout", SHL_OPT_DOUBLE, attention_dropout, 0, 0.999, "0", NULL, NULL,       \
            "Tuning", "Of attention weights, while training.")

#define SHL_ROWS_EVAL                                                                                \
    SHL_ROW("eval-every", SHL_OPT_COUNT, eval_every, 1, 1e15, NULL, NULL, "steps", "Validation",     \
            "Evaluates then and after the last step, forward only."),                                \
    SHL_ROW("eval-batches", SHL_OPT_COUNT, eval_batches, 0, 1e12, "0", NULL, "batches", "Validation", \
            "Batches of an evaluation, of --batch sequences each, all ranks together; 0 takes all.")

#define SHL_ROWS_VALIDATION                                                                          \
    SHL_ROW("val-split", SHL_OPT_DOUBLE, val_split, 0, 0.999999, "0", NULL, NULL, "Validation",      \
            "Last fraction of the data, never trained on."),                                         \
    SHL_ROW("val-data", SHL_OPT_STRING, val_data, 0, 0, NULL, NULL, NULL, "Validation",              \
            "Or a file of its own, of the kinds that --data takes."),                                \
    SHL_ROWS_EVAL

#define SHL_ROWS_DEVICE                                                                              \
    SHL_ROW("threads", SHL_OPT_INT, threads, 1, 1024, NULL, NULL, "per rank", "Run",                 \
            "Compute threads; default cores / ranks."),                                              \
    SHL_ROW("as", SHL_OPT_ENUM, as, 0, 0, "cpu", shl_choices_as, NULL, "Run",                        \
            "What a virtual device stands for."),                                                    \
    SHL_ROW("device-memory", SHL_OPT_BYTES, device_memory_bytes, 1, 4e18, NULL, NULL, "per rank",    \
            "Run", "Memory limit, such as 2GiB; default none.")

#define SHL_ROW_COMM                                                                                 \
    SHL_ROW("comm", SHL_OPT_ENUM, comm, 0, 0, "auto", shl_choices_comm, NULL, "Run",                 \
            "How ranks talk; auto: shm on cpu, nccl on cuda. local: threads on one GPU. "          \
            "nccl-ordered: nccl with the sums of the others, bit by bit.")

/* What only a GPU looks at. */
#define SHL_ROWS_GPU                                                                                 \
    SHL_ROW("share-gpu", SHL_OPT_BOOL, share_gpu, 0, 0, NULL, NULL, NULL, "GPU",                     \
            "Ranks may have one GPU together, for tests: its time is divided."),                     \
    SHL_ROW("tf32", SHL_OPT_BOOL, tf32, 0, 0, NULL, NULL, NULL, "GPU",                               \
            "Matrix products of fp32 may round their factors to TF32."),                             \
    SHL_ROW("attention", SHL_OPT_ENUM, attention, 0, 0, "own", shl_choices_attention, NULL, "GPU",   \
            "Forward: the own kernel, or cuDNN's (bf16 without dropout only); backward: the own.")

#define SHL_ROWS_OFFLOAD                                                                             \
    SHL_ROW("offload-optimizer", SHL_OPT_LIST, offload_optimizer, 0, 0, "none", shl_choices_offload, NULL, "Offload", \
                                                                                    \
            "Master weights, moments and reduced gradients of zero1, zero2, zero3 and fsdp in host "  \
            "memory."),                                                                              \
    SHL_ROW("offload-param", SHL_OPT_LIST, offload_param, 0, 0, "none", shl_choices_offload, NULL, "Offload",       \
            "Parameter shards of zero3 in host memory; fsdp's go with its optimizer."),                                 \
    SHL_ROW("offload-activations", SHL_OPT_ENUM, offload_activations, 0, 0, "none", shl_choices_offload, \
            NULL, "Offload", "Inputs of recomputed blocks in host memory until backward (--recompute full)."), \
    SHL_ROW("offload-ratio", SHL_OPT_DOUBLE, offload_ratio, 0, 1, "1", NULL, NULL, "Offload",        \
            "Part of the optimizer that is offloaded; the rest is updated on the device."),          \
    SHL_ROW("sub-group-size", SHL_OPT_COUNT, sub_group_size, 1, 1e15, "4194304", NULL, "elements",   \
            "Offload", "Updated at once, while the ones before are copied back."),                   \
    SHL_ROW("pin-memory", SHL_OPT_BOOL, pin_memory, 0, 0, NULL, NULL, NULL, "Offload",               \
            "Offloaded states in locked pages."),                                                    \
    SHL_ROW("pin-limit", SHL_OPT_BYTES, pin_limit_bytes, 1, 4e18, NULL, NULL, "per rank", "Offload", \
            "Most locked memory; default what the system allows."),                                  \
    SHL_ROW("host-memory", SHL_OPT_BYTES, host_memory_bytes, 1, 4e18, NULL, NULL, "per rank",        \
            "Offload", "Limit of what is offloaded, such as 8GiB; default none."),                   \
    SHL_ROW("link", SHL_OPT_STRING, link, 0, 0, NULL, NULL, "rate", "Offload",                       \
            "Copies between device and host memory take at least this long, such as 16GB/s each way.")

/* A ds_config.json, and the words of DeepSpeed's launcher. */
#define SHL_ROWS_DS_FILE                                                                             \
    SHL_ROW("config", SHL_OPT_STRING, ds.config, 0, 0, NULL, NULL, "file", "DeepSpeed",              \
            "A ds_config.json (or its base64): strategy, batch, dtypes and optimizer are its own."), \
    SHL_ROW("trainer-args", SHL_OPT_STRING, ds.trainer, 0, 0, NULL, NULL, "file", "DeepSpeed",       \
            "TrainingArguments of a Hugging Face Trainer as JSON, for what is \"auto\"."),           \
    SHL_ROW("deepspeed-defaults", SHL_OPT_INT, ds.dated, 2023, 2026, "2026", NULL, "year",           \
            "DeepSpeed", "Defaults of 2023 or 2026 (clipping, pinned memory, overflow check).")

#define SHL_ROW_DS_SHOW \
    SHL_ROW("show-config", SHL_OPT_BOOL, ds.show, 0, 0, NULL, NULL, NULL, "DeepSpeed",               \
            "Prints every key with its value and origin, and ends.")

#define SHL_ROWS_DS_LAUNCH \
    SHL_ROW("hostfile", SHL_OPT_STRING, ds.hostfile, 0, 0, NULL, NULL, "file", "DeepSpeed",          \
            "Lines of the form: host slots=N; one host runs."),                                      \
    SHL_ROW("include", SHL_OPT_STRING, ds.include, 0, 0, NULL, NULL, NULL, "DeepSpeed",              \
            "Hosts and slots that take part, as host:0,1."),                                         \
    SHL_ROW("exclude", SHL_OPT_STRING, ds.exclude, 0, 0, NULL, NULL, NULL, "DeepSpeed",              \
            "Hosts and slots that do not."),                                                         \
    SHL_ROW("num_gpus", SHL_OPT_INT, ds.num_slots, 1, 1e6, NULL, NULL, "ranks", "DeepSpeed",         \
            "The launcher's word for --ranks."),                                                     \
    SHL_ROW("num_nodes", SHL_OPT_INT, ds.num_nodes, 1, 1e6, NULL, NULL, "hosts", "DeepSpeed",        \
            "1: one host runs.")

#define SHL_ROWS_DEEPSPEED SHL_ROWS_DS_FILE, SHL_ROW_DS_SHOW, SHL_ROWS_DS_LAUNCH

#define SHL_ROWS_PLAN                                                                                \
    SHL_ROW("convention", SHL_OPT_ENUM, convention, 0, 0, "shardlab", shl_choices_convention, NULL,  \
            "Output", "deepspeed: its own estimates and collectives beside ours, and what makes the difference."),   \
    SHL_ROW("emit", SHL_OPT_ENUM, emit, 0, 0, "none", shl_choices_emit, NULL, "Output",              \
            "deepspeed: prints the ds_config.json of the row instead."),                             \
    SHL_ROW("explain-schedule", SHL_OPT_BOOL, explain, 0, 0, NULL, NULL, NULL, "Output",             \
            "Prints the gathers of a step of each row: order, bytes, who waits, what is live.")

#define SHL_ROWS_CHECKPOINT                                                                          \
    SHL_ROW("ckpt-dir", SHL_OPT_STRING, ckpt_dir, 0, 0, NULL, NULL, NULL, "Checkpoint",              \
            "Folder for checkpoints; one is saved at the end."),                                     \
    SHL_ROW("save-every", SHL_OPT_COUNT, save_every, 1, 1e15, NULL, NULL, "steps", "Checkpoint",     \
            "Saves in between as well."),                                                            \
    SHL_ROW("resume", SHL_OPT_BOOL, resume, 0, 0, NULL, NULL, NULL, "Checkpoint",                    \
            "Goes on from the latest checkpoint of --ckpt-dir.")

#define SHL_ROWS_FORMAT                                                                              \
    SHL_ROW("json", SHL_OPT_BOOL, json, 0, 0, NULL, NULL, NULL, "Output",                            \
            "Records as one JSON array on stdout, instead of a table."),                             \
    SHL_ROW("jsonl", SHL_OPT_BOOL, jsonl, 0, 0, NULL, NULL, NULL, "Output",                          \
            "Records as JSON lines, as they come."),                                                 \
    SHL_ROW("csv", SHL_OPT_BOOL, csv, 0, 0, NULL, NULL, NULL, "Output",                              \
            "Run records as CSV."),                                                                  \
    SHL_ROW("md", SHL_OPT_BOOL, md, 0, 0, NULL, NULL, NULL, "Output",                                \
            "The table in Markdown."),                                                               \
    SHL_ROW("out", SHL_OPT_STRING, out, 0, 0, NULL, NULL, NULL, "Output",                            \
            "Appends all records to this file as JSON lines, whatever stdout shows."),               \
    SHL_ROW("timeline", SHL_OPT_BOOL, timeline, 0, 0, NULL, NULL, NULL, "Output",                    \
            "Also records every memory event of one steady step of rank 0 (with --json, --jsonl or " \
            "--out).")

#define SHL_ROWS_HIDDEN                                                                              \
    SHL_ROW("row", SHL_OPT_INT, row, -1, 1e9, "-1", NULL, NULL, "Hidden",                            \
            "Row of the sweep that this rank process belongs to."),                                  \
    SHL_ROW("result-fd", SHL_OPT_INT, result_fd, -1, 1e9, "-1", NULL, NULL, "Hidden",                \
            "Descriptor for the results of a rank process.")
#define SHL_N_ROWS_HIDDEN 2
/* clang-format on */

/* Defaults of every field. Errors: SHL_E_HEAP only. */
shl_code shl_run_options_init(shl_run_options *o) SHL_MUST_USE;

/* The rows of a sweep, resolved and checked one by one. */
typedef struct shl_run_points {
    shl_session_config *configs; /* strings borrowed from the options */
    int64_t n;
    shl_str notes; /* lines for the user: how a size or a file was taken, what is approximated */
} shl_run_points;

/* Errors: SHL_E_USAGE with the flag, the value and its limit; no row runs before all are good. Owner:
 * caller, shl_run_points_fini (also after a failure). */
shl_code shl_run_points_resolve(const shl_run_options *o, shl_run_points *out) SHL_MUST_USE;
void shl_run_points_fini(shl_run_points *p);

#endif
