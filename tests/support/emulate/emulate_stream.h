// tests/support/emulate: a stream is a queue of closures that runs when it is waited for; an event is a
// place in one. One lock guards all of them; ranks may be threads.
#ifndef SHL_EMULATE_STREAM_H
#define SHL_EMULATE_STREAM_H

#include "cuda_runtime.h"

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace emulate {

struct stream {
    std::deque<std::function<void()>> queue;
    uint64_t queued = 0, done = 0;
};

struct event {
    stream *of = nullptr;
    uint64_t place = 0;
    std::shared_ptr<int64_t> passed_ns;
};

namespace status {
const int E_INVALID = 1, E_MEMORY = 2, E_DRIVER = 35, E_DEVICE = 101, E_CONTEXT = 201, E_LOST = 700,
          E_LOCKED = 712, E_NOT_LOCKED = 713;
}

extern std::recursive_mutex lock;
// Device of this thread; below 0 none: the runtime would take the first, and open a context there.
extern thread_local int current;

// What a copy meets.
enum side { DEVICE, LOCKED, PAGEABLE, NEITHER };
side side_of(const void *data, size_t bytes);
// Whether data is mapped device memory, and all of bytes.
bool is_device(const void *data, size_t bytes, bool *whole);

int host_take(size_t bytes, void **out);
int host_give(void *data);
int host_lock(void *data, size_t bytes);
int host_unlock(void *data);

void enqueue(stream *s, std::function<void()> work);
void run_until(stream *s, uint64_t place);

} // namespace emulate

#endif
