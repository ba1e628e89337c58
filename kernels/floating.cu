// Every kernel of one format that meets f32 inputs. Compiled once per format: see integer.cu.
#include "exact.cuh"
#include "tf32.cuh"
#include FILE

KERNEL_MANY(JOIN(exact_1_, NAME), LinearArgs, 256) { exact_linear<FORMAT::Walked, 1>(a); }
KERNEL(JOIN(exact_4_, NAME), LinearArgs, 256) { exact_linear<FORMAT::Walked, 4>(a); }
KERNEL(JOIN(exact_8_, NAME), LinearArgs, 256) { exact_linear<FORMAT::Walked, 8>(a); }
KERNEL_MANY(JOIN(pairs_, NAME), PairArgs, 256) { exact_pairs<FORMAT::Walked>(a); }
KERNEL(JOIN(large_64_, NAME), LinearArgs, 256) { tf32_linear<FORMAT>(a); }
KERNEL(JOIN(groups_64_, NAME), GroupArgs, 256) { tf32_groups<FORMAT>(a); }
KERNEL(JOIN(blocks_, NAME), BlockArgs, 256) { exact_blocks<FORMAT, FORMAT::ROW_MAJOR>(a); }
KERNEL(JOIN(transposed_, NAME), BlockArgs, 256) { exact_transposed<FORMAT, FORMAT::ROW_MAJOR>(a); }
KERNEL(JOIN(embed_, NAME), EmbedArgs, 256) { embed_rows<FORMAT>(a); }
