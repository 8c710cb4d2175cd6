/* kernels/device: which sanitizer this build has, for the address ranges that they restrict, and
 * poisoning of freed arena memory. */
#ifndef SHL_DEVICE_SANITIZE_H
#define SHL_DEVICE_SANITIZE_H

#if defined(__has_feature)
#define SHL_HAS_FEATURE(x) __has_feature(x)
#else
#define SHL_HAS_FEATURE(x) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || SHL_HAS_FEATURE(address_sanitizer)
#define SHL_ASAN 1
#include <sanitizer/asan_interface.h>
#define SHL_POISON(data, bytes) ASAN_POISON_MEMORY_REGION((data), (bytes))
#define SHL_UNPOISON(data, bytes) ASAN_UNPOISON_MEMORY_REGION((data), (bytes))
#define SHL_IS_POISONED(data) (__asan_address_is_poisoned(data) != 0)
#else
#define SHL_ASAN 0
#define SHL_POISON(data, bytes) ((void)(data), (void)(bytes))
#define SHL_UNPOISON(data, bytes) ((void)(data), (void)(bytes))
#define SHL_IS_POISONED(data) ((void)(data), 0)
#endif

#if defined(__SANITIZE_THREAD__) || SHL_HAS_FEATURE(thread_sanitizer)
#define SHL_TSAN 1
#else
#define SHL_TSAN 0
#endif

#endif
