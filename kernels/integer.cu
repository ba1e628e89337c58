// Every kernel of one format of integer levels. Compiled once per format, with FORMAT (the struct), FILE (its header) and
// NAME (the end of the kernels' names).
#include "small.cuh"
#include "large.cuh"
#include "exact.cuh"
#include FILE

KERNEL_MANY(JOIN(small_1_, NAME), LinearArgs, 256) { small_linear<FORMAT, 1>(a); }
KERNEL(JOIN(small_4_, NAME), LinearArgs, 256) { small_linear<FORMAT, 4>(a); }
KERNEL(JOIN(small_8_, NAME), LinearArgs, 256) { small_linear<FORMAT, 8>(a); }
KERNEL_MANY(JOIN(pairs_, NAME), PairArgs, 256) { small_pairs<FORMAT>(a); }
KERNEL(JOIN(large_64_, NAME), LinearArgs, 256) { large_linear<FORMAT, 64>(a); }
KERNEL(JOIN(groups_16_, NAME), GroupArgs, 256) { large_groups<FORMAT, 16>(a); }
KERNEL(JOIN(groups_64_, NAME), GroupArgs, 256) { large_groups<FORMAT, 64>(a); }
// Where inputs may not be rounded.
KERNEL_MANY(JOIN(pairs_exact_, NAME), PairArgs, 256) { exact_pairs<Walk<FORMAT, false>>(a); }
KERNEL(JOIN(exact_4_, NAME), LinearArgs, 256) { exact_linear<Walk<FORMAT, false>, 4>(a); }
KERNEL(JOIN(blocks_, NAME), BlockArgs, 256) { exact_blocks<FORMAT, false>(a); }
KERNEL(JOIN(transposed_, NAME), BlockArgs, 256) { exact_transposed<FORMAT, false>(a); }
KERNEL(JOIN(embed_, NAME), EmbedArgs, 256) { embed_rows<FORMAT>(a); }
