// MM_EXPORT marks what a shared libmmengine shows; everything else is hidden.
#pragma once

#if defined(__GNUC__)
#define MM_EXPORT __attribute__((visibility("default")))
#else
#define MM_EXPORT
#endif
