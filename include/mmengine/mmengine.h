// Everything a host program needs, and the version.
#pragma once

#include "mmengine/engine.h"
#include "mmengine/error.h"
#include "mmengine/forecast.h"
#include "mmengine/types.h"

#define MMENGINE_VERSION_MAJOR 0
#define MMENGINE_VERSION_MINOR 1
#define MMENGINE_VERSION_PATCH 0
