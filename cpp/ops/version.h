#pragma once
#if !defined(AWP_VERSION)
#define AWP_VERSION "unknown"
#endif
