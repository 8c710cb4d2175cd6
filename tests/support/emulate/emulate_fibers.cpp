// tests/support/emulate: the threads of a block as fibers of the calling thread. A fiber runs until it
// is done or waits at a rendezvous; when all that must come have come, they go on.
#include "cuda_runtime.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace emulate {

thread_local place now;

namespace {

const size_t STACK_BYTES = 128 << 10;
const int WARP = 32;

enum class waits { nothing, block, warp, over };

struct fiber {
    ucontext_t start;
    jmp_buf at;
    void *stack = nullptr;
    bool begun = false;
    waits wait = waits::over;
    uint3 thread{};
    int lane = 0, warp = 0;
    unsigned exchanges = 0;
};

struct warp_room {
    lane_words words[2][WARP];
    int alive = 0, arrived = 0, all = 0;
};

// All that one calling thread needs to run kernels; kept for its life.
struct machine {
    std::vector<std::unique_ptr<fiber>> fibers;
    std::vector<warp_room> warps;
    std::vector<unsigned char> shared = std::vector<unsigned char>(SHARED_MOST + 16);
    const std::function<void()> *kernel = nullptr;
    fiber *running = nullptr;
    ucontext_t first;
    jmp_buf scheduler;
    unsigned turn = 0;

    ~machine()
    {
        for (auto &f : fibers) {
            munmap(f->stack, STACK_BYTES);
        }
    }
};

thread_local std::unique_ptr<machine> mine;

// The body of a fiber: one kernel thread after the other, for ever.
void
fiber_main()
{
    for (;;) {
        (*mine->kernel)();
        mine->running->wait = waits::over;
        if (_setjmp(mine->running->at) == 0) {
            _longjmp(mine->scheduler, 1);
        }
    }
}

void
run(fiber *f)
{
    machine *m = mine.get();
    m->running = f;
    now.thread = f->thread;
    now.lane = f->lane;
    f->wait = waits::nothing;
    if (_setjmp(m->scheduler) != 0) {
        return;
    }
    if (f->begun) {
        _longjmp(f->at, 1);
    }
    f->begun = true;
    getcontext(&f->start);
    f->start.uc_stack.ss_sp = f->stack;
    f->start.uc_stack.ss_size = STACK_BYTES;
    f->start.uc_link = nullptr;
    makecontext(&f->start, fiber_main, 0);
    setcontext(&f->start);
}

void
pause(waits why)
{
    fiber *f = mine->running;
    f->wait = why;
    if (_setjmp(f->at) == 0) {
        _longjmp(mine->scheduler, 1);
    }
}

void
grow(machine *m, size_t n)
{
    while (m->fibers.size() < n) {
        std::unique_ptr<fiber> f(new fiber);
        f->stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (f->stack == MAP_FAILED) {
            perror("emulate: mmap");
            abort();
        }
        m->fibers.push_back(std::move(f));
    }
}

// One block, from first to last thread or the other way about, by turns.
void
run_block(machine *m, size_t n)
{
    size_t alive = n;
    m->turn++;
    while (alive > 0) {
        size_t at_block = 0, went = 0;
        for (size_t k = 0; k < n; k++) {
            fiber *f = m->fibers[m->turn % 2 == 0 ? k : n - 1 - k].get();
            if (f->wait == waits::nothing) {
                run(f);
                went++;
                if (f->wait == waits::over) {
                    alive--;
                    m->warps[static_cast<size_t>(f->warp)].alive--;
                } else if (f->wait == waits::warp) {
                    m->warps[static_cast<size_t>(f->warp)].arrived++;
                }
            }
        }
        for (size_t k = 0; k < n; k++) {
            fiber *f = m->fibers[k].get();
            warp_room &w = m->warps[static_cast<size_t>(f->warp)];
            if (f->wait == waits::warp && w.arrived >= w.alive) {
                f->wait = waits::nothing;
                went++;
            }
            at_block += f->wait == waits::block ? 1 : 0;
        }
        for (auto &w : m->warps) {
            w.arrived = w.arrived >= w.alive ? 0 : w.arrived;
        }
        if (alive > 0 && at_block == alive) {
            for (size_t k = 0; k < n; k++) {
                fiber *f = m->fibers[k].get();
                f->wait = f->wait == waits::block ? waits::nothing : f->wait;
            }
        } else if (went == 0 && alive > 0) {
            fprintf(stderr, "emulate: threads of a block wait for each other for ever\n");
            abort();
        }
    }
}

} // namespace

void *
dynamic_shared()
{
    uintptr_t at = reinterpret_cast<uintptr_t>(mine->shared.data());
    return reinterpret_cast<void *>((at + 15) / 16 * 16);
}

void
block_barrier()
{
    pause(waits::block);
}

void
warp_barrier()
{
    pause(waits::warp);
}

const lane_words *
warp_exchange(const lane_words &words)
{
    fiber *f = mine->running;
    warp_room &w = mine->warps[static_cast<size_t>(f->warp)];
    unsigned side = f->exchanges++ % 2;
    w.words[side][f->lane] = words;
    if (w.alive < w.all) { // a full mask names lanes that are gone
        fprintf(stderr, "emulate: a warp exchanges words after some of its lanes ended\n");
        abort();
    }
    pause(waits::warp);
    return mine->warps[static_cast<size_t>(f->warp)].words[side];
}

namespace {
std::mutex allowed_lock;
std::map<const void *, size_t> allowed;
} // namespace

int
allow_shared(const void *kernel, int bytes)
{
    std::lock_guard<std::mutex> hold(allowed_lock);
    if (bytes < 0 || static_cast<size_t>(bytes) > SHARED_MOST) {
        return 1; // cudaErrorInvalidValue
    }
    allowed[kernel] = static_cast<size_t>(bytes);
    return 0;
}

void
check_shared(const void *kernel, size_t bytes)
{
    std::lock_guard<std::mutex> hold(allowed_lock);
    auto at = allowed.find(kernel);
    if (bytes > (at == allowed.end() ? SHARED_UNASKED : at->second)) {
        fprintf(stderr, "emulate: %zu bytes of shared memory for a kernel that may not have them\n",
                bytes);
        abort();
    }
}

void
launch(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()> &kernel)
{
    size_t n = static_cast<size_t>(block.x) * block.y * block.z;
    if (mine == nullptr) {
        mine.reset(new machine);
    }
    machine *m = mine.get();
    if (n == 0 || n > 1024 || shared_bytes > SHARED_MOST || grid.x == 0 || grid.y == 0 ||
        grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
        fprintf(stderr, "emulate: a launch of grid %u %u %u, block of %zu threads, %zu bytes shared\n",
                grid.x, grid.y, grid.z, n, shared_bytes);
        abort();
    }
    grow(m, n);
    m->kernel = &kernel;
    now.block_dim = block;
    now.grid_dim = grid;
    for (unsigned long long b = 0; b < 1ull * grid.x * grid.y * grid.z; b++) {
        now.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                     static_cast<unsigned>(b / grid.x / grid.y)};
        m->warps.assign((n + WARP - 1) / WARP, warp_room());
        std::memset(dynamic_shared(), 0xff, shared_bytes);
        for (size_t k = 0; k < n; k++) {
            fiber *f = m->fibers[k].get();
            unsigned at = static_cast<unsigned>(k);
            f->thread = {at % block.x, at / block.x % block.y, at / block.x / block.y};
            f->lane = static_cast<int>(k % WARP);
            f->warp = static_cast<int>(k / WARP);
            f->wait = waits::nothing;
            f->exchanges = 0;
            m->warps[static_cast<size_t>(f->warp)].alive++;
            m->warps[static_cast<size_t>(f->warp)].all++;
        }
        run_block(m, n);
    }
}

} // namespace emulate
