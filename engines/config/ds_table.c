/* engines/config: the key table of DeepSpeed's configuration file (runtime/config.py, zero/config.py and
 * their kin, version 0.19; defaults of 2026). A status is one word here. */
#include "engines/config/ds_table.h"

#include <stdio.h>
#include <string.h>

#include "kernels/base/str.h"
#include "kernels/base/types.h"

#define MOST 9223372036854775807.0
#define LARGE 1e300
#define BELOW_ONE 0.99999999999999988898 /* the last double before 1 */

/* clang-format off */
static const shl_ds_key rows[] = {
    {"train_batch_size", NULL, "null", 1, MOST, NULL, NULL, "sequences of an update: micro x accumulation x ranks", SHL_DS_INT, SHL_DS_WORKS, 0, "tokens of a step"},
    {"train_micro_batch_size_per_gpu", NULL, "null", 1, MOST, NULL, NULL, "sequences of a rank in a micro-step", SHL_DS_INT, SHL_DS_WORKS, 0, "peak of act"},
    {"gradient_accumulation_steps", NULL, "null", 1, MOST, NULL, NULL, "micro-steps of an update", SHL_DS_INT, SHL_DS_WORKS, 0, "reduction calls"},
    {"gradient_clipping", NULL, "1.0", 0, LARGE, NULL, NULL, "global L2 norm; 0 is off", SHL_DS_REAL, SHL_DS_WORKS, 0, "clip factor"},
    {"managed_gradient_accumulation", NULL, "true", 0, 0, NULL, NULL, "an update is made at the boundary only", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.stage", NULL, "0", 0, 3, NULL, NULL, "0 is ddp; 1, 2 and 3 are zero1, zero2 and zero3", SHL_DS_INT, SHL_DS_WORKS, 0, "device peak"},
    {"zero_optimization.contiguous_gradients", NULL, "true", 0, 0, NULL, NULL, "gradients always lie in flat buckets", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.reduce_scatter", NULL, "true", 0, 0, NULL, NULL, "false: the mean is formed after the sum, as beside DeepSpeed's all-reduce; what runs is a reduce-scatter", SHL_DS_BOOL, SHL_DS_WORKS, 0, "loss scale of a run"},
    {"zero_optimization.reduce_bucket_size", NULL, "5e8", 1, MOST, NULL, NULL, "elements of a bucket; never more than the model has", SHL_DS_INT, SHL_DS_WORKS, 0, "reduction calls"},
    {"zero_optimization.use_multi_rank_bucket_allreduce", NULL, "true", 0, 0, NULL, "any", "one reduce-scatter serves all owners either way", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.allgather_partitions", NULL, "true", 0, 0, NULL, "any", "DeepSpeed reads it nowhere either", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.allgather_bucket_size", NULL, "5e8", 0, MOST, NULL, "any", "a bucket is gathered in one call, as DeepSpeed does where it can", SHL_DS_INT, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.overlap_comm", NULL, "null", 0, 0, NULL, NULL, "false: a reduction is waited for at once; same bits", SHL_DS_BOOL, SHL_DS_WORKS, 0, "exposed communication"},
    {"zero_optimization.compute_grad_norm", NULL, "true", 0, 0, NULL, NULL, "the norm is always known", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.load_from_fp32_weights", NULL, "true", 0, 0, NULL, NULL, "a checkpoint holds the masters", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.elastic_checkpoint", NULL, "false", 0, 0, NULL, NULL, "a checkpoint loads into any number of ranks without it", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.sub_group_size", NULL, "1e9", 1, MOST, NULL, NULL, "elements of a sub-group of an offloaded update", SHL_DS_INT, SHL_DS_WORKS, 3, "host peak of staging"},
    {"zero_optimization.stage3_prefetch_bucket_size", "prefetch_bucket_size", "5e7", 0, MOST, NULL, NULL, "elements gathered ahead of their use; the last group may pass it", SHL_DS_INT, SHL_DS_WORKS, 3, "peak of gather"},
    {"zero_optimization.stage3_param_persistence_threshold", "param_persistence_threshold", "1e5", 0, MOST, NULL, NULL, "tensors up to it stay whole, and are gathered after each update", SHL_DS_INT, SHL_DS_WORKS, 3, "peak of param"},
    {"zero_optimization.stage3_model_persistence_threshold", "model_persistence_threshold", "9223372036854775807", 0, MOST, NULL, NULL, "elements of such tensors together, first fit", SHL_DS_INT, SHL_DS_WORKS, 3, "peak of param"},
    {"zero_optimization.stage3_max_live_parameters", "max_live_parameters", "1e9", 0, MOST, NULL, NULL, "nothing is gathered ahead beyond it; what is needed always is", SHL_DS_INT, SHL_DS_WORKS, 3, "peak of gather"},
    {"zero_optimization.stage3_max_reuse_distance", "max_reuse_distance", "1e9", 0, MOST, NULL, NULL, "a tensor stays for backward when that is within so many elements", SHL_DS_INT, SHL_DS_WORKS, 3, "gather bytes"},
    {"zero_optimization.stage3_gather_16bit_weights_on_model_save", "gather_16bit_weights_on_model_save", "false", 0, 0, NULL, NULL, "a checkpoint has a model.safetensors of whole parameters too, in the type that they are used in", SHL_DS_BOOL, SHL_DS_WORKS, 3, "files of a checkpoint"},
    {"zero_optimization.stage3_module_granularity_threshold", "module_granularity_threshold", "0", 0, MOST, NULL, NULL, "modules with fewer elements per module are gathered as one", SHL_DS_INT, SHL_DS_WORKS, 3, "gather calls"},
    {"zero_optimization.stage3_use_all_reduce_for_fetch_params", "use_all_reduce_for_fetch_params", "false", 0, 0, NULL, NULL, "a gather goes straight into its place", SHL_DS_BOOL, SHL_DS_INERT, 3, NULL},
    {"zero_optimization.stage3_allgather_sequential", "allgather_sequential", "false", 0, 0, NULL, NULL, "one gather for each tensor, one ahead", SHL_DS_BOOL, SHL_DS_WORKS, 3, "gather calls"},
    {"zero_optimization.ignore_unused_parameters", NULL, "true", 0, 0, NULL, NULL, "every parameter of these models is used", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.round_robin_gradients", NULL, "false", 0, 0, NULL, "any", "every bucket is shared by all ranks already", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.parameter_alignment", NULL, "false", 0, 0, NULL, NULL, "tensors start at multiples of 8 elements", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.legacy_stage1", NULL, "false", 0, 0, NULL, NULL, "DeepSpeed has removed it", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.zero_hpz_partition_size", NULL, "1", 0, MOST, NULL, "0", "ZeRO++ is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zero_quantized_weights", NULL, "false", 0, 0, NULL, NULL, "ZeRO++ is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zero_quantized_nontrainable_weights", NULL, "false", 0, 0, NULL, NULL, "ZeRO++ is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zero_quantized_gradients", NULL, "false", 0, 0, NULL, NULL, "ZeRO++ is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zeropp_loco_param", NULL, "null", 0, 0, NULL, NULL, "ZeRO++ is not in this build", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.mics_shard_size", NULL, "-1", -1, MOST, NULL, NULL, "MiCS is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.mics_hierarchical_params_gather", NULL, "false", 0, 0, NULL, NULL, "MiCS is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.memory_efficient_linear", NULL, "true", 0, 0, NULL, "any", "a patch of Python modules", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.override_module_apply", NULL, "true", 0, 0, NULL, "any", "a patch of Python modules", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.pipeline_loading_checkpoint", NULL, "false", 0, 0, NULL, NULL, "ranks read only their own ranges", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.log_trace_cache_warnings", NULL, "false", 0, 0, NULL, "any", "there is no trace to warn about", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.enable_sanity_checks", NULL, "false", 0, 0, NULL, "any", "ranks always agree on what they do", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_optimization.save_muon_momentum_buffer_in_memory", NULL, "false", 0, 0, NULL, NULL, "Muon is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.leaf_module.classes", NULL, "[]", 0, 0, NULL, NULL, "modules gathered as a whole, by their class in transformers: GPT2Block, LlamaMLP, ...", SHL_DS_TEXTS, SHL_DS_WORKS, 3, "gather calls"},
    {"zero_optimization.leaf_module.names", NULL, "[]", 0, 0, NULL, NULL, "modules gathered as a whole, by path", SHL_DS_TEXTS, SHL_DS_WORKS, 3, "gather calls"},
    {"zero_optimization.leaf_module.name_suffixes", NULL, "[]", 0, 0, NULL, NULL, "modules gathered as a whole, by the end of their path", SHL_DS_TEXTS, SHL_DS_WORKS, 3, "gather calls"},
    {"zero_optimization.zenflow.topk_ratio", NULL, "0.1", 0, LARGE, NULL, NULL, "ZenFlow is not in this build", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.select_strategy", NULL, "\"auto\"", 0, 0, NULL, NULL, "ZenFlow is not in this build", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.select_interval", NULL, "\"auto\"", 0, 0, NULL, NULL, "ZenFlow is not in this build", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.update_interval", NULL, "\"auto\"", 0, 0, NULL, NULL, "ZenFlow is not in this build", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.overlap_step", NULL, "false", 0, 0, NULL, NULL, "ZenFlow is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.offload", NULL, "false", 0, 0, NULL, NULL, "ZenFlow is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.auto_ratio", NULL, "0.99", 0, LARGE, NULL, NULL, "ZenFlow is not in this build", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.full_warm_up_rounds", NULL, "0", 0, MOST, NULL, NULL, "ZenFlow is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.zenflow.pt_reserved_cores_perc", NULL, "0.5", 0, LARGE, NULL, NULL, "ZenFlow is not in this build", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_optimizer.device", NULL, "\"none\"", 0, 0, "none cpu nvme", NULL, "\"cpu\": master weights, moments and gradients in host memory", SHL_DS_ENUM, SHL_DS_WORKS, 0, "host peak"},
    {"zero_optimization.offload_optimizer.nvme_path", NULL, "null", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_optimizer.buffer_count", NULL, "4", 0, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_optimizer.pin_memory", NULL, "true", 0, 0, NULL, NULL, "locked pages for what is offloaded", SHL_DS_BOOL, SHL_DS_WORKS, 0, "pinned peak"},
    {"zero_optimization.offload_optimizer.pipeline_read", NULL, "false", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_optimizer.pipeline_write", NULL, "false", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_optimizer.fast_init", NULL, "false", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_optimizer.ratio", NULL, "1.0", 0, 1, NULL, NULL, "share of the sub-groups that is offloaded", SHL_DS_REAL, SHL_DS_WORKS, 3, "host peak"},
    {"zero_optimization.offload_optimizer.super_offload", NULL, "false", 0, 0, NULL, NULL, "SuperOffload is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 3, NULL},
    {"zero_optimization.offload_optimizer.cpuadam_cores_perc", NULL, "0.8", 0, 1, NULL, NULL, "SuperOffload is not in this build", SHL_DS_REAL, SHL_DS_REFUSED, 3, NULL},
    {"zero_optimization.offload_param.device", NULL, "\"none\"", 0, 0, "none cpu nvme", NULL, "\"cpu\": parameter shards in host memory", SHL_DS_ENUM, SHL_DS_WORKS, 0, "host peak"},
    {"zero_optimization.offload_param.nvme_path", NULL, "null", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_param.buffer_count", NULL, "5", 0, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_param.buffer_size", NULL, "1e8", 0, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_param.max_in_cpu", NULL, "1e9", 0, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"zero_optimization.offload_param.pin_memory", NULL, "true", 0, 0, NULL, NULL, "locked pages for what is offloaded", SHL_DS_BOOL, SHL_DS_WORKS, 0, "pinned peak"},
    {"aio.block_size", NULL, "1048576", 1, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"aio.queue_depth", NULL, "8", 1, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"aio.intra_op_parallelism", NULL, "1", 1, MOST, NULL, NULL, "NVMe is not in this build", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"aio.single_submit", NULL, "false", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"aio.overlap_events", NULL, "true", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"aio.use_gds", NULL, "false", 0, 0, NULL, NULL, "NVMe is not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"fp16.enabled", NULL, "false", 0, 0, NULL, NULL, "fp16 parameters and activations, fp32 masters and moments", SHL_DS_BOOL, SHL_DS_WORKS, 0, "peak of param"},
    {"fp16.auto_cast", NULL, "false", 0, 0, NULL, NULL, "tokens have nothing to cast", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"fp16.loss_scale", NULL, "0", 0, LARGE, NULL, NULL, "0: dynamic; else that scale always", SHL_DS_REAL, SHL_DS_WORKS, 0, "loss scale"},
    {"fp16.initial_scale_power", NULL, "16", 0, 1000, NULL, NULL, "the first dynamic scale is 2 to this power", SHL_DS_INT, SHL_DS_WORKS, 0, "loss scale"},
    {"fp16.loss_scale_window", NULL, "1000", 0, MOST, NULL, NULL, "clean steps to a doubling", SHL_DS_INT, SHL_DS_WORKS, 0, "loss scale"},
    {"fp16.hysteresis", NULL, "2", 1, MOST, NULL, NULL, "overflows to the first halving", SHL_DS_INT, SHL_DS_WORKS, 0, "loss scale"},
    {"fp16.consecutive_hysteresis", NULL, "false", 0, 0, NULL, NULL, "any clean step refills the hysteresis", SHL_DS_BOOL, SHL_DS_WORKS, 0, "loss scale"},
    {"fp16.min_loss_scale", NULL, "1", 0, MOST, NULL, NULL, "no halving goes below it", SHL_DS_INT, SHL_DS_WORKS, 0, "loss scale"},
    {"fp16.fp16_master_weights_and_grads", NULL, "false", 0, 0, NULL, NULL, "fp16 masters and gradients beside offload_optimizer; moments stay fp32", SHL_DS_BOOL, SHL_DS_WORKS, 0, "host peak"},
    {"bf16.enabled", NULL, "false", 0, 0, NULL, NULL, "bf16 parameters and activations, fp32 masters and moments", SHL_DS_BOOL, SHL_DS_WORKS, 0, "peak of param"},
    {"bf16.immediate_grad_update", NULL, "false", 0, 0, NULL, "any", "a reduced bucket is added at once", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"bf16.check_grad_overflow", NULL, "true", 0, 0, NULL, NULL, "skips a step whose gradients are not finite, in every stage", SHL_DS_BOOL, SHL_DS_WORKS, 0, "skipped steps"},
    {"bf16.bf16_master_weights_and_grads", NULL, "false", 0, 0, NULL, NULL, "bf16 masters and gradients; beside fp32 moments with offload_optimizer only", SHL_DS_BOOL, SHL_DS_WORKS, 0, "peak of master"},
    {"bf16.bf16_optimizer_states", NULL, "false", 0, 0, NULL, NULL, "bf16 moments", SHL_DS_BOOL, SHL_DS_WORKS, 0, "peak of optim"},
    {"data_types.grad_accum_dtype", NULL, "null", 0, 0, "fp32 bf16 fp16", NULL, "gradients while they are accumulated; null: that of the model", SHL_DS_ENUM, SHL_DS_WORKS, 0, "peak of grad"},
    {"data_types.param_dtype", NULL, "null", 0, 0, "fp32 bf16 fp16", NULL, "fp16 and bf16 say it", SHL_DS_ENUM, SHL_DS_REFUSED, 0, NULL},
    {"data_types.buffer_dtype", NULL, "null", 0, 0, "fp32 bf16 fp16", "any", "these models have no buffers", SHL_DS_ENUM, SHL_DS_INERT, 0, NULL},
    {"data_types.keep_in_fp32_modules", NULL, "\"auto\"", 0, 0, NULL, NULL, "these models have no buffers", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"communication_data_type", NULL, "null", 0, 0, "fp32 bf16 fp16", NULL, "gradients while they are reduced; null: that of the model", SHL_DS_ENUM, SHL_DS_WORKS, 0, "reduction bytes"},
    {"seq_parallel_communication_data_type", NULL, "\"fp32\"", 0, 0, "fp32 bf16 fp16", "any", "there is no sequence parallelism", SHL_DS_ENUM, SHL_DS_INERT, 0, NULL},
    {"sequence_parallel_size", NULL, "1", 1, MOST, NULL, NULL, "sequence parallelism is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"gradient_allreduce_op", NULL, "\"mean\"", 0, 0, "mean sum", NULL, "sum: gradients are not divided by the ranks; stages 0 to 2", SHL_DS_ENUM, SHL_DS_WORKS, 0, "gradient norm"},
    {"prescale_gradients", NULL, "false", 0, 0, NULL, NULL, "gradients are divided by the ranks before their sum; stage 0, or reduce_scatter false", SHL_DS_BOOL, SHL_DS_WORKS, 0, "loss scale of a run"},
    {"gradient_predivide_factor", NULL, "1.0", 0, LARGE, NULL, NULL, "gradients are divided by it before their sum, by the rest after it; stage 0, or reduce_scatter false", SHL_DS_REAL, SHL_DS_WORKS, 0, "loss scale of a run"},
    {"optimizer.type", NULL, "null", 0, 0, NULL, NULL, "Adam, AdamW, Lamb, Lion, Adagrad and SGD; the others are not in this build", SHL_DS_TEXT, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.legacy_fusion", NULL, "false", 0, 0, NULL, NULL, "the update is one kernel", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"optimizer.params.lr", NULL, "0.001", 0, LARGE, NULL, NULL, "learning rate", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.betas", NULL, "[0.9, 0.999]", 0, BELOW_ONE, NULL, NULL, "decay of the two moments", SHL_DS_REALS, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.eps", NULL, "1e-8", 1e-30, 1, NULL, NULL, "added to the root of the second moment", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.weight_decay", NULL, "0", 0, LARGE, NULL, NULL, "on tensors of two or more dimensions", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.adam_w_mode", NULL, "true", 0, 0, NULL, NULL, "false: Adam with its decay in the gradient", SHL_DS_BOOL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.bias_correction", NULL, "true", 0, 0, NULL, NULL, "of Adam, AdamW and Lamb; false: moments are used as they are", SHL_DS_BOOL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.amsgrad", NULL, "false", 0, 0, NULL, NULL, "DeepSpeed refuses it too", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"optimizer.params.torch_adam", NULL, "false", 0, 0, NULL, "any", "the same mathematics", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"optimizer.params.fused", NULL, "null", 0, 0, NULL, "any", "the update is one kernel", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"optimizer.params.momentum", NULL, "0", 0, BELOW_ONE, NULL, NULL, "of SGD", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.dampening", NULL, "0", 0, LARGE, NULL, NULL, "of SGD with momentum", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.nesterov", NULL, "false", 0, 0, NULL, NULL, "of SGD with momentum", SHL_DS_BOOL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.max_coeff", NULL, "10.0", 0, LARGE, NULL, NULL, "largest trust ratio of Lamb", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.min_coeff", NULL, "0.01", 0, LARGE, NULL, NULL, "least trust ratio of Lamb", SHL_DS_REAL, SHL_DS_WORKS, 0, "parameters"},
    {"optimizer.params.max_grad_norm", NULL, "null", 0, LARGE, NULL, NULL, "DeepSpeed refuses it as well: gradient_clipping is the key", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"zero_allow_untested_optimizer", NULL, "false", 0, 0, NULL, "any", "every optimizer here is tested with every stage", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"zero_force_ds_cpu_optimizer", NULL, "true", 0, 0, NULL, "any", "there is one AdamW on the host", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"scheduler.type", NULL, "null", 0, 0, "LRRangeTest OneCycle WarmupLR WarmupDecayLR WarmupCosineLR", NULL, "update k uses the k-th rate of the original", SHL_DS_ENUM, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.warmup_min_lr", NULL, "0", 0, LARGE, NULL, NULL, "of the warm-up classes", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.warmup_max_lr", NULL, "null", 0, LARGE, NULL, NULL, "of the warm-up classes", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.warmup_num_steps", NULL, "1000", 1, MOST, NULL, NULL, "of the warm-up classes", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.warmup_type", NULL, "\"log\"", 0, 0, "log linear", NULL, "of the warm-up classes", SHL_DS_ENUM, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.total_num_steps", NULL, "null", 0, MOST, NULL, NULL, "of WarmupDecayLR, WarmupCosineLR", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.warmup_min_ratio", NULL, "0", 0, LARGE, NULL, NULL, "of WarmupCosineLR", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cos_min_ratio", NULL, "0.0001", 0, LARGE, NULL, NULL, "of WarmupCosineLR", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.lr_range_test_min_lr", NULL, "0.001", 0, LARGE, NULL, NULL, "of LRRangeTest", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.lr_range_test_step_size", NULL, "2000", 1, MOST, NULL, NULL, "of LRRangeTest", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.lr_range_test_step_rate", NULL, "1.0", 0, LARGE, NULL, NULL, "of LRRangeTest", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.lr_range_test_staircase", NULL, "false", 0, 0, NULL, NULL, "of LRRangeTest", SHL_DS_BOOL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_min_lr", NULL, "null", 0, LARGE, NULL, NULL, "of OneCycle", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_max_lr", NULL, "null", 0, LARGE, NULL, NULL, "of OneCycle", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.decay_lr_rate", NULL, "0", 0, LARGE, NULL, NULL, "of OneCycle", SHL_DS_REAL, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_first_step_size", NULL, "2000", 1, MOST, NULL, NULL, "of OneCycle", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_second_step_size", NULL, "null", 0, MOST, NULL, NULL, "of OneCycle", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_first_stair_count", NULL, "0", 0, MOST, NULL, NULL, "of OneCycle", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_second_stair_count", NULL, "null", 0, MOST, NULL, NULL, "of OneCycle", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.decay_step_size", NULL, "0", 0, MOST, NULL, NULL, "of OneCycle", SHL_DS_INT, SHL_DS_WORKS, 0, "learning rate"},
    {"scheduler.params.cycle_momentum", NULL, "true", 0, 0, NULL, NULL, "of OneCycle", SHL_DS_BOOL, SHL_DS_WORKS, 0, "betas"},
    {"scheduler.params.cycle_min_mom", NULL, "0.8", 0, BELOW_ONE, NULL, NULL, "of OneCycle", SHL_DS_REAL, SHL_DS_WORKS, 0, "betas"},
    {"scheduler.params.cycle_max_mom", NULL, "0.9", 0, BELOW_ONE, NULL, NULL, "of OneCycle", SHL_DS_REAL, SHL_DS_WORKS, 0, "betas"},
    {"scheduler.params.decay_mom_rate", NULL, "0", 0, LARGE, NULL, NULL, "of OneCycle", SHL_DS_REAL, SHL_DS_WORKS, 0, "betas"},
    {"steps_per_print", NULL, "null", 0, MOST, NULL, "any", "every step is told", SHL_DS_INT, SHL_DS_INERT, 0, NULL},
    {"wall_clock_breakdown", NULL, "false", 0, 0, NULL, "any", "every record has the times of the phases", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"memory_breakdown", NULL, "false", 0, 0, NULL, "any", "every record has the peak of each tag", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"dump_state", NULL, "false", 0, 0, NULL, "any", "--show-config prints the configuration", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"disable_python_gc", NULL, "false", 0, 0, NULL, "any", "there is no Python", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"disable_allgather", NULL, "false", 0, 0, NULL, NULL, "not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"sparse_gradients", NULL, "false", 0, 0, NULL, NULL, "not in this build", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"dataloader_drop_last", NULL, "false", 0, 0, NULL, "any", "the data has no last, short batch", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"log_level", NULL, "null", 0, 0, NULL, "any", "a level of Python loggers", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"vocabulary_size", NULL, "null", 0, MOST, NULL, "any", "the model says it", SHL_DS_INT, SHL_DS_INERT, 0, NULL},
    {"timers.throughput.enabled", NULL, "true", 0, 0, NULL, "any", "tokens per second are in every record", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"timers.throughput.synchronized", NULL, "true", 0, 0, NULL, "any", "tokens per second are in every record", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"flops_profiler.enabled", NULL, "false", 0, 0, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"flops_profiler.profile_step", NULL, "1", -1, MOST, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"flops_profiler.module_depth", NULL, "-1", -1, MOST, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"flops_profiler.top_modules", NULL, "1", -1, MOST, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"flops_profiler.detailed", NULL, "true", 0, 0, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"flops_profiler.output_file", NULL, "null", 0, 0, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"flops_profiler.recompute_fwd_factor", NULL, "0.0", 0, LARGE, NULL, NULL, "info models and the records have the FLOPs", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"activation_checkpointing.partition_activations", NULL, "false", 0, 0, NULL, "any", "split over the ranks of tensor parallelism: there is one, which holds the whole, as in DeepSpeed", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"activation_checkpointing.cpu_checkpointing", NULL, "false", 0, 0, NULL, NULL, "with --recompute full: inputs of blocks in host memory, but for the last one's; the block switches no recomputation on, as in DeepSpeed", SHL_DS_BOOL, SHL_DS_WORKS, 0, "host peak"},
    {"activation_checkpointing.contiguous_memory_optimization", NULL, "false", 0, 0, NULL, "any", "an arena of the tier holds them, so nothing is fragmented", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"activation_checkpointing.number_checkpoints", NULL, "null", 0, MOST, NULL, "any", "the size of a contiguous buffer; which blocks are recomputed is --recompute-every", SHL_DS_INT, SHL_DS_INERT, 0, NULL},
    {"activation_checkpointing.synchronize_checkpoint_boundary", NULL, "false", 0, 0, NULL, "any", "a copy is waited for where its bytes are needed", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"activation_checkpointing.profile", NULL, "false", 0, 0, NULL, "any", "records and --timeline have the times of forward and backward", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"checkpoint.tag_validation", NULL, "\"WARN\"", 0, 0, "IGNORE WARN FAIL Ignore Warn Fail", "any", "ranks always agree on the checkpoint", SHL_DS_ENUM, SHL_DS_INERT, 0, NULL},
    {"checkpoint.load_universal", NULL, "false", 0, 0, NULL, "any", "every checkpoint is universal", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"checkpoint.use_node_local_storage", NULL, "false", 0, 0, NULL, NULL, "one machine runs", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"checkpoint.parallel_write.pipeline_stage", NULL, "false", 0, 0, NULL, NULL, "pipelines are not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.checkpoint_serialization", NULL, "true", 0, 0, NULL, NULL, "a checkpoint is HDF5", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"checkpoint.writer.type", NULL, "null", 0, 0, "NULL VANILLA FAST", NULL, "FastPersist is not in this program", SHL_DS_ENUM, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.writer.io_buffer_size", NULL, "67108864", 0, MOST, NULL, NULL, "FastPersist is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.writer.io_buffer_double", NULL, "true", 0, 0, NULL, NULL, "FastPersist is not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.writer.decoupled", NULL, "false", 0, 0, NULL, NULL, "FastPersist is not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.writer.data_parallel", NULL, "null", 0, 0, "REPLICA SOCKET MACHINE", NULL, "FastPersist is not in this program", SHL_DS_ENUM, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.writer.io_multiplier", NULL, "1", 0, MOST, NULL, NULL, "FastPersist is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"checkpoint.writer.show_statistics", NULL, "false", 0, 0, NULL, NULL, "FastPersist is not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"datastates_ckpt.host_cache_size", NULL, "null", 0, LARGE, NULL, NULL, "asynchronous checkpoints are not in this build", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.enabled", NULL, "false", 0, 0, NULL, NULL, "elasticity is not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.max_train_batch_size", NULL, "2000", 0, MOST, NULL, NULL, "elasticity is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.micro_batch_sizes", NULL, "[2, 4, 6]", 0, MOST, NULL, NULL, "elasticity is not in this program", SHL_DS_INTS, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.min_gpus", NULL, "1", 0, MOST, NULL, NULL, "elasticity is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.max_gpus", NULL, "10000", 0, MOST, NULL, NULL, "elasticity is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.min_time", NULL, "0", 0, MOST, NULL, NULL, "elasticity is not in this program", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.prefer_larger_batch", NULL, "true", 0, 0, NULL, NULL, "elasticity is not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.version", NULL, "0.2", 0, LARGE, NULL, NULL, "elasticity is not in this program", SHL_DS_REAL, SHL_DS_REFUSED, 0, NULL},
    {"elasticity.ignore_non_elastic_batch_info", NULL, "false", 0, 0, NULL, NULL, "elasticity is not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.deepcompile", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.free_activation", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.free_activation_threshold", NULL, "10485760", 0, MOST, NULL, NULL, "there is no graph to compile", SHL_DS_INT, SHL_DS_REFUSED, 0, NULL},
    {"compile.offload_activation", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.offload_opt_states", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.double_buffer", NULL, "true", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.symmetric_memory", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.debug_log", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.offload_parameters", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.sync_before_reduce", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.sync_after_reduce", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.sync_before_allgather", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.sync_after_allgather", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.keep_int_input_tensors", NULL, "true", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"compile.keep_all_input_tensors", NULL, "false", 0, 0, NULL, NULL, "there is no graph to compile", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"torch_autocast.enabled", NULL, "false", 0, 0, NULL, NULL, "fp16 and bf16 say it", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"torch_autocast.dtype", NULL, "null", 0, 0, NULL, NULL, "fp16 and bf16 say it", SHL_DS_TEXT, SHL_DS_REFUSED, 0, NULL},
    {"torch_autocast.lower_precision_safe_modules", NULL, "null", 0, 0, NULL, NULL, "fp16 and bf16 say it", SHL_DS_TEXTS, SHL_DS_REFUSED, 0, NULL},
    {"comms_logger.enabled", NULL, "false", 0, 0, NULL, "any", "every record counts the collectives", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"comms_logger.prof_all", NULL, "true", 0, 0, NULL, "any", "every record counts the collectives", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"comms_logger.prof_ops", NULL, "[]", 0, 0, NULL, "any", "every record counts the collectives", SHL_DS_TEXTS, SHL_DS_INERT, 0, NULL},
    {"comms_logger.verbose", NULL, "false", 0, 0, NULL, "any", "every record counts the collectives", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"comms_logger.debug", NULL, "false", 0, 0, NULL, "any", "every record counts the collectives", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"tensorboard.enabled", NULL, "false", 0, 0, NULL, NULL, "--out writes records; monitors are not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"tensorboard.output_path", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"tensorboard.job_name", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"csv_monitor.enabled", NULL, "false", 0, 0, NULL, NULL, "--out writes records; monitors are not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"csv_monitor.output_path", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"csv_monitor.job_name", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"wandb.enabled", NULL, "false", 0, 0, NULL, NULL, "--out writes records; monitors are not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"wandb.group", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"wandb.team", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"wandb.project", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"comet.enabled", NULL, "false", 0, 0, NULL, NULL, "--out writes records; monitors are not in this program", SHL_DS_BOOL, SHL_DS_REFUSED, 0, NULL},
    {"comet.samples_log_interval", NULL, "null", 0, MOST, NULL, "any", "read only by a monitor that is on", SHL_DS_INT, SHL_DS_INERT, 0, NULL},
    {"comet.project", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"comet.workspace", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"comet.api_key", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"comet.experiment_name", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"comet.experiment_key", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"comet.online", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
    {"comet.mode", NULL, "null", 0, 0, NULL, "any", "read only by a monitor that is on", SHL_DS_TEXT, SHL_DS_INERT, 0, NULL},
    {"amp", NULL, "null", 0, 0, NULL, NULL, "apex is Python", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"autotuning", NULL, "null", 0, 0, NULL, NULL, "plan and bench are the way here", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"pipeline", NULL, "null", 0, 0, NULL, NULL, "pipelines are not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"sparse_attention", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"nebula", NULL, "null", 0, 0, NULL, NULL, "asynchronous checkpoints are not in this build", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"data_efficiency", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"curriculum_learning", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"progressive_layer_drop", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"eigenvalue", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"quantize_training", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"compression_training", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"hybrid_engine", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"weight_quantization", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"tensor_parallel", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"expert_parallel", NULL, "null", 0, 0, NULL, NULL, "not in this program", SHL_DS_TREE, SHL_DS_REFUSED, 0, NULL},
    {"use_data_before_expert_parallelism", NULL, "false", 0, 0, NULL, "any", "there are no experts", SHL_DS_BOOL, SHL_DS_INERT, 0, NULL},
};
/* clang-format on */

/* What changed in 2026 (DeepSpeed #8035, #8068, #8207). */
static const struct {
    const char *path, *fallback;
} of_2023[] = {
    {"gradient_clipping", "0"},
    {"bf16.check_grad_overflow", "false"},
    {"zero_optimization.offload_optimizer.pin_memory", "false"},
    {"zero_optimization.offload_param.pin_memory", "false"},
};

static const shl_ds_moved moved[] = {
    {"bfloat16", "bf16", NULL},
    {"zero_optimization.cpu_offload", "zero_optimization.offload_optimizer",
     "{\"device\": \"cpu\"}"},
    {"zero_optimization.cpu_offload_param", "zero_optimization.offload_param",
     "{\"device\": \"cpu\"}"},
    {"zero_optimization.cpu_offload_use_pin_memory", "pin_memory in the offload blocks", ""},
    {"zero_optimization.stage3_gather_fp16_weights_on_model_save",
     "zero_optimization.stage3_gather_16bit_weights_on_model_save", NULL},
};

const shl_ds_key *
shl_ds_keys(size_t *n)
{
    *n = SHL_ARRAY_LEN(rows);
    return rows;
}

const shl_ds_moved *
shl_ds_moved_keys(size_t *n)
{
    *n = SHL_ARRAY_LEN(moved);
    return moved;
}

/* Whether path is the row's with its alias for the last component. */
static bool
is_alias(const shl_ds_key *key, const char *path)
{
    const char *dot = strrchr(key->path, '.');
    size_t len = dot ? (size_t)(dot - key->path) + 1 : 0;
    return key->alias && strncmp(path, key->path, len) == 0 && strcmp(path + len, key->alias) == 0;
}

int
shl_ds_key_find(const char *path)
{
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        if (strcmp(rows[i].path, path) == 0 || is_alias(&rows[i], path)) {
            return (int)i;
        }
    }
    return -1;
}

bool
shl_ds_is_block(const char *path)
{
    size_t len = strlen(path);
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        if (strncmp(rows[i].path, path, len) == 0 && rows[i].path[len] == '.') {
            return true;
        }
    }
    return false;
}

const char *
shl_ds_fallback(const shl_ds_key *key, int dated)
{
    for (size_t i = 0; dated == 2023 && i < SHL_ARRAY_LEN(of_2023); i++) {
        if (strcmp(of_2023[i].path, key->path) == 0) {
            return of_2023[i].fallback;
        }
    }
    return key->fallback;
}

void
shl_ds_keys_markdown(shl_str *out)
{
    shl_str_add(out, "| key | default | here | what shows it | why |\n|---|---|---|---|---|\n");
    for (size_t i = 0; i < SHL_ARRAY_LEN(rows); i++) {
        const shl_ds_key *k = &rows[i];
        const char *early = shl_ds_fallback(k, 2023);
        shl_str_add(out, "| `%s`", k->path);
        if (k->alias) {
            shl_str_add(out, " (also `%s`)", k->alias);
        }
        shl_str_add(out, " | %s", k->fallback);
        if (strcmp(early, k->fallback) != 0) {
            shl_str_add(out, " (2023: %s)", early);
        }
        if (k->status == SHL_DS_WORKS) {
            shl_str_add(out, " | works");
        } else if (k->inert && strcmp(k->inert, "any") == 0) {
            shl_str_add(out, " | no effect, any value");
        } else {
            shl_str_add(out, " | %s: only the default%s%s",
                        k->status == SHL_DS_INERT ? "inert" : "refused", k->inert ? " or " : "",
                        k->inert ? k->inert : "");
        }
        shl_str_add(out, " | %s | %s |\n", k->effect ? k->effect : "", k->why);
    }
}
