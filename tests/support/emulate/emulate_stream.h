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
    std::unique_ptr<std::vector<std::function<void()>>> recording;
};

struct event {
    stream *of = nullptr;
    uint64_t place = 0;
    std::shared_ptr<int64_t> passed_ns;
};

void enqueue(stream *s, std::function<void()> work);
void run_until(stream *s, uint64_t place);

} // namespace emulate

#endif
