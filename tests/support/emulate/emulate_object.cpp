// tests/support/emulate: the table of kernels/cuda/cuda_backend.h on the CPU. A stream is a queue that
// runs when somebody waits for it and not before: work that nobody ordered by an event has not happened
// when it is needed, and values go wrong, always and on every machine.
#include "emulate_stream.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

extern "C" {
#include "kernels/cuda/object/cuda_launchers.h"
#include "kernels/cuda/object/cuda_libs.h"
}

namespace {

using emulate::event;
using emulate::stream;

const int DEVICES = 1;
const size_t GRANULE_BYTES = 2 << 20;
const size_t TOTAL_BYTES = size_t(64) << 30;
using namespace emulate::status;

using emulate::current;
using emulate::lock;
size_t mapped_bytes;

// Ranges of device memory. With SHL_EMULATED_STRICT the host reaches none of it: only queued work does.
struct range {
    char *base;
    size_t mapped;
};
std::vector<range> ranges;
int running; // depth of run_until

bool
is_strict()
{
    static const bool strict = std::getenv("SHL_EMULATED_STRICT") != nullptr;
    return strict;
}

void
let_in(const range &r)
{
    if (is_strict() && r.mapped > 0) {
        mprotect(r.base, r.mapped, running > 0 ? PROT_READ | PROT_WRITE : PROT_NONE);
    }
}

void
let_all_in()
{
    for (const range &r : ranges) {
        let_in(r);
    }
}

int64_t
now_ns()
{
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

const char *
error_text(int status)
{
    switch (status) {
    case 0: return "success";
    case E_INVALID: return "cudaErrorInvalidValue: invalid argument";
    case E_MEMORY: return "cudaErrorMemoryAllocation: out of memory";
    case E_LOST: return "cudaErrorIllegalAddress: an illegal memory access was encountered";
    case E_CONTEXT: return "cudaErrorDeviceUninitialized: this thread has chosen no device";
    case E_LOCKED: return "cudaErrorHostMemoryAlreadyRegistered: part or all of it is locked";
    case E_NOT_LOCKED: return "cudaErrorHostMemoryNotRegistered: no lock begins there";
    case E_DEVICE: return "cudaErrorInvalidDevice: invalid device ordinal";
    case E_DRIVER:
        return "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime "
               "version";
    case SHL_CUDA_UNSUPPORTED: return "the emulation does not have it";
    default:
        if (status >= SHL_CUDA_STATUS_DNN) {
            return shl_cuda_dnn_text(status);
        }
        return status >= SHL_CUDA_STATUS_BLAS && status < SHL_CUDA_STATUS_DNN ? shl_cuda_blas_text(status)
                                                                              : "unknown status";
    }
}

// SHL_EMULATED_FIRST: number of the first of the cards that this process sees.
int
first_card()
{
    const char *first = std::getenv("SHL_EMULATED_FIRST");
    return first == nullptr ? 0 : std::atoi(first);
}

// SHL_EMULATED_DEVICES: how many cards; below 0: a driver that is too old.
int
count(int *devices)
{
    const char *many = std::getenv("SHL_EMULATED_DEVICES");
    *devices = many == nullptr ? DEVICES : std::atoi(many);
    return *devices < 0 ? E_DRIVER : 0;
}

// SHL_EMULATED_OTHER: "number,name,major,minor,multiprocessors" of a card that is not like the others.
void
be_another(const char *text, int device, shl_cuda_info *out)
{
    shl_cuda_info other = *out;
    int number = -1;
    if (std::sscanf(text, "%d,%127[^,],%d,%d,%d", &number, other.name, &other.major, &other.minor,
                    &other.multiprocessors) == 5 &&
        number == device) {
        *out = other;
    }
}

int
info(int device, shl_cuda_info *out)
{
    int n = 0;
    count(&n);
    if (device < 0 || device >= n) {
        return E_DEVICE;
    }
    *out = shl_cuda_info();
    std::snprintf(out->name, sizeof(out->name), "emulated on the CPU");
    std::snprintf(out->uuid, sizeof(out->uuid), "GPU-00000000-0000-0000-0000-%012d", device + first_card());
    std::snprintf(out->pci, sizeof(out->pci), "00000000:%02d:00.0", device + first_card());
    out->major = 9;
    out->multiprocessors = 4;
    out->clock_khz = 1000000;
    const char *other = std::getenv("SHL_EMULATED_OTHER");
    if (other != nullptr) {
        be_another(other, device, out);
    }
    out->total_bytes = TOTAL_BYTES;
    out->l2_bytes = 96 << 10; // little, so that grids that look at it have several turns
    out->block_shared_bytes = 227 << 10;
    out->driver_version = out->runtime_version = 13000;
    return 0;
}

int
use(int device)
{
    shl_cuda_info unused;
    int status = info(device, &unused);
    current = status == 0 ? device : current;
    return status;
}

// SHL_EMULATED_MEMORY: bytes of the card.
size_t
card_bytes()
{
    const char *text = std::getenv("SHL_EMULATED_MEMORY");
    return text == nullptr ? TOTAL_BYTES : std::strtoull(text, nullptr, 10);
}

int
memory(size_t *free_bytes, size_t *total_bytes)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (current < 0) {
        return E_CONTEXT;
    }
    *total_bytes = card_bytes();
    *free_bytes = *total_bytes > mapped_bytes ? *total_bytes - mapped_bytes : 0;
    return 0;
}

void
versions(char *text, size_t bytes)
{
    std::snprintf(text, bytes, "emulation");
}

int
reserve(int, size_t bytes, void **base, size_t *granule_bytes)
{
    *base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    *granule_bytes = GRANULE_BYTES;
    if (*base == MAP_FAILED) {
        return E_MEMORY;
    }
    std::lock_guard<std::recursive_mutex> hold(lock);
    ranges.push_back({static_cast<char *>(*base), 0});
    return 0;
}

int
map(int, void *base, size_t from, size_t to)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (from % GRANULE_BYTES != 0 || to % GRANULE_BYTES != 0 || to < from) {
        return E_INVALID;
    }
    if (mapped_bytes + (to - from) > card_bytes()) {
        return E_MEMORY;
    }
    if (mprotect(static_cast<char *>(base) + from, to - from, PROT_READ | PROT_WRITE) != 0) {
        return E_MEMORY;
    }
    // New memory holds anything. More than this is not written: tests would take the time.
    std::memset(static_cast<char *>(base) + from, 0xff, std::min(to - from, size_t(1) << 20));
    mapped_bytes += to - from;
    for (range &r : ranges) {
        if (r.base == base) {
            r.mapped = to;
            let_in(r);
        }
    }
    return 0;
}

int
unreserve(void *base, size_t bytes, size_t mapped)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    mapped_bytes -= mapped;
    for (size_t i = 0; i < ranges.size(); i++) {
        if (ranges[i].base == base) {
            ranges.erase(ranges.begin() + static_cast<long>(i));
            break;
        }
    }
    return munmap(base, bytes) == 0 ? 0 : E_INVALID;
}

int
stream_open(int, void **out)
{
    *out = new stream;
    return current < 0 ? E_CONTEXT : 0;
}

int
stream_sync(void *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    stream *at = static_cast<stream *>(s);
    emulate::run_until(at, at->queued);
    return 0;
}

int
stream_close(void *s)
{
    stream_sync(s);
    delete static_cast<stream *>(s);
    return 0;
}

int
event_open(bool, void **out)
{
    *out = new event;
    return 0;
}

int
event_close(void *e)
{
    delete static_cast<event *>(e);
    return 0;
}

int
event_record(void *e, void *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    event *at = static_cast<event *>(e);
    if (current < 0) {
        return E_CONTEXT;
    }
    std::shared_ptr<int64_t> passed(new int64_t(0));
    at->passed_ns = passed;
    emulate::enqueue(static_cast<stream *>(s), [passed]() { *passed = now_ns(); });
    at->of = static_cast<stream *>(s);
    at->place = at->of->queued;
    return 0;
}

int
event_wait(void *e, void *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    event at = *static_cast<event *>(e);
    if (at.of != nullptr) {
        emulate::enqueue(static_cast<stream *>(s), [at]() {
            if (*at.passed_ns == 0) {
                emulate::run_until(at.of, at.place);
            }
        });
    }
    return 0;
}

int
event_sync(void *e)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    event *at = static_cast<event *>(e);
    if (at->of != nullptr && *at->passed_ns == 0) {
        emulate::run_until(at->of, at->place);
    }
    return 0;
}

// Blocks nobody, runs nothing: a watchdog asks while others are inside their work.
int
event_query(void *e)
{
    if (current < 0) {
        return E_CONTEXT;
    }
    std::unique_lock<std::recursive_mutex> hold(lock, std::try_to_lock);
    if (!hold.owns_lock()) {
        return SHL_CUDA_NOT_READY;
    }
    event *at = static_cast<event *>(e);
    return at->of == nullptr || *at->passed_ns != 0 ? 0 : SHL_CUDA_NOT_READY;
}

int
event_elapsed_ns(void *from, void *to, int64_t *ns)
{
    *ns = *static_cast<event *>(to)->passed_ns - *static_cast<event *>(from)->passed_ns;
    return 0;
}

// Pageable memory is read when the copy is queued, and written before the call returns.
int
copy(void *dst, const void *src, size_t bytes, void *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    using namespace emulate;
    side to = side_of(dst, bytes), from = side_of(src, bytes);
    if (to == NEITHER || from == NEITHER || current < 0) {
        return current < 0 ? E_CONTEXT : E_INVALID;
    }
    if (from == PAGEABLE) {
        const char *at = static_cast<const char *>(src);
        std::shared_ptr<std::vector<char>> now(new std::vector<char>(at, at + bytes));
        emulate::enqueue(static_cast<stream *>(s),
                         [=]() { std::memcpy(dst, now->data(), bytes); });
    } else {
        emulate::enqueue(static_cast<stream *>(s), [=]() { std::memcpy(dst, src, bytes); });
    }
    return to == PAGEABLE ? stream_sync(s) : 0;
}

int
fill(void *dst, int byte, size_t bytes, void *s)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    emulate::enqueue(static_cast<stream *>(s), [=]() { std::memset(dst, byte, bytes); });
    return 0;
}

int
call(void *s, void (*fn)(void *), void *arg)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    emulate::enqueue(static_cast<stream *>(s), [=]() { fn(arg); });
    return 0;
}

int
libs_open(int, void **out)
{
    shl_cuda_libs *libs = new shl_cuda_libs();
    int status = shl_cuda_blas_open(std::calloc(1, shl_cuda_blas_bytes()), &libs->blas);
    libs->dnn = static_cast<shl_cuda_dnn *>(std::calloc(1, shl_cuda_dnn_bytes()));
    *out = libs;
    return status;
}

void
libs_close(void *at)
{
    shl_cuda_libs *libs = static_cast<shl_cuda_libs *>(at);
    if (libs != nullptr) {
        shl_cuda_blas_close(libs->blas);
        std::free(libs->blas);
        shl_cuda_dnn_close(libs->dnn);
        std::free(libs->dnn);
        delete libs;
    }
}

shl_cuda_backend table;

// SHL_EMULATED_LOST=gelu_forward: that op's first launch takes the device away, as a wild address does: every later
// launch fails too. With a ! before it the process ends there.
const char *lost_at;
bool lost;

template <shl_op OP>
int
guarded(const shl_cuda_launch *l, const void *args, void *work)
{
    static const char *const names[] = {
#define NAME(op, name) #name,
        SHL_OPS(NAME)
#undef NAME
    };
    if (std::strcmp(lost_at + (lost_at[0] == '!'), names[OP]) == 0) {
        lost = true;
        if (lost_at[0] == '!') {
            std::abort();
        }
    }
    return lost ? E_LOST : shl_cuda_launcher_table[OP](l, args, work);
}

const shl_cuda_op_fn guarded_table[] = {
#define ROW(op, name) guarded<SHL_OP_##op>,
    SHL_OPS(ROW)
#undef ROW
};

} // namespace

namespace emulate {

std::recursive_mutex lock;
thread_local int current = -1;

bool
is_device(const void *data, size_t bytes, bool *whole)
{
    const char *at = static_cast<const char *>(data);
    for (const range &r : ranges) {
        if (at >= r.base && at < r.base + r.mapped) {
            *whole = at + bytes <= r.base + r.mapped;
            return true;
        }
    }
    return false;
}

void
enqueue(stream *s, std::function<void()> work)
{
    s->queue.push_back(std::move(work));
    s->queued++;
}

void
run_until(stream *s, uint64_t place)
{
    if (s->done < place && running++ == 0) {
        let_all_in();
    } else if (s->done >= place) {
        return;
    }
    while (s->done < place) {
        std::function<void()> work = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        work();
    }
    if (--running == 0) {
        let_all_in();
    }
}

void
launch_on(void *s, dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> kernel)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    enqueue(static_cast<stream *>(s), [=]() { launch(grid, block, shared_bytes, kernel); });
}

} // namespace emulate

extern "C" __attribute__((visibility("default"))) const shl_cuda_backend *
shl_cuda_backend_entry(uint32_t abi)
{
    if (abi != SHL_CUDA_ABI) {
        return nullptr;
    }
    std::lock_guard<std::recursive_mutex> hold(lock);
    table.abi = abi;
    table.bytes = sizeof(table);
    table.name = "emulated";
    table.error_text = error_text;
    table.count = count;
    table.info = info;
    table.use = use;
    table.memory = memory;
    table.versions = versions;
    table.reserve = reserve;
    table.map = map;
    table.unreserve = unreserve;
    table.host_take = emulate::host_take;
    table.host_give = emulate::host_give;
    table.host_lock = emulate::host_lock;
    table.host_unlock = emulate::host_unlock;
    table.stream_open = stream_open;
    table.stream_close = stream_close;
    table.stream_sync = stream_sync;
    table.event_open = event_open;
    table.event_close = event_close;
    table.event_record = event_record;
    table.event_wait = event_wait;
    table.event_sync = event_sync;
    table.event_query = event_query;
    table.event_elapsed_ns = event_elapsed_ns;
    table.copy = copy;
    table.fill = fill;
    table.call = call;
    table.libs_open = libs_open;
    table.libs_close = libs_close;
    lost_at = std::getenv("SHL_EMULATED_LOST");
    table.op = lost_at == nullptr ? shl_cuda_launcher_table : guarded_table;
    return &table;
}
