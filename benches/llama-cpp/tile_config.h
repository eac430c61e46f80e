// GCC before 12.4 and 13.3 believes that _tile_loadconfig reads 8 bytes (GCC's bug 114098) and may leave out the stores
// of the other 56: llama.cpp's AMX products then crash. Included before each of its files, so that it runs at its best.
#if defined(__GNUC__) && !defined(__clang__) && defined(__AMX_TILE__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
