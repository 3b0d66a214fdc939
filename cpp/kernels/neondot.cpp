#define AWP_DOT
#include "neon.inc"
