#include "neon.inc"
