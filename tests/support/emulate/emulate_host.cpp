// tests/support/emulate: host memory as the driver sees it: locked by it, or pageable.
#include "emulate_stream.h"

#include <cstdlib>
#include <cstring>
#include <map>

namespace {

// By their begin.
std::map<const char *, size_t> locks;

// The lock that holds an address; locks.end(): none.
std::map<const char *, size_t>::iterator
lock_of(const char *at)
{
    auto next = locks.upper_bound(at);
    if (next == locks.begin()) {
        return locks.end();
    }
    --next;
    return at < next->first + next->second ? next : locks.end();
}

} // namespace

namespace emulate {

using namespace status;

// What a copy meets: the driver refuses what is locked in part, or by two calls.
side
side_of(const void *data, size_t bytes)
{
    const char *at = static_cast<const char *>(data);
    bool whole = false;
    if (is_device(data, bytes, &whole)) {
        return whole ? DEVICE : NEITHER;
    }
    auto from = lock_of(at);
    if (from != locks.end()) {
        return at + bytes <= from->first + from->second ? LOCKED : NEITHER;
    }
    auto next = locks.upper_bound(at);
    return next == locks.end() || at + bytes <= next->first ? PAGEABLE : NEITHER;
}

// With what was there before in it.
int
host_take(size_t bytes, void **out)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    *out = current < 0 ? nullptr : std::malloc(bytes);
    if (*out == nullptr) {
        return current < 0 ? E_CONTEXT : E_MEMORY;
    }
    std::memset(*out, 0xa5, bytes);
    locks[static_cast<char *>(*out)] = bytes;
    return 0;
}

int
host_give(void *data)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (locks.erase(static_cast<char *>(data)) == 0) {
        return E_INVALID;
    }
    std::free(data);
    return 0;
}

int
host_lock(void *data, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    if (current < 0) {
        return E_CONTEXT;
    }
    side at = side_of(data, bytes);
    if (at != PAGEABLE) {
        return at == DEVICE ? E_INVALID : E_LOCKED;
    }
    locks[static_cast<char *>(data)] = bytes;
    return 0;
}

int
host_unlock(void *data)
{
    std::lock_guard<std::recursive_mutex> hold(lock);
    return locks.erase(static_cast<char *>(data)) == 0 ? E_NOT_LOCKED : 0;
}

} // namespace emulate
