/* What the host and the shaders agree on: one push constant struct per op, tile sizes and
 * specialization constants. This text is both C and GLSL: kernels/vulkan/push.h includes it, and a
 * shader declares
 *
 *     layout(push_constant) uniform push_block { push_embed p; };
 *
 * Bindings, all in set 0 and in this order, only those the op has (weights, biases and norms are
 * read-only; an absent bias or norm weight is bound to a dummy, and has_bias or has_weight is 0):
 *
 *     embed      0 ids   1 weight            2 y
 *     rms_norm   0 x, a  1 weight            2 y  3 b, gate, rows  4 sum  5 q
 *                6 parts, b's weight  7 shares  8 shared  9 its gate
 *     quantize   0 x     1 q
 *     mat_vec    0 x, q  1 weight  2 bias    3 y  4 experts  5 lists  6 gated  7 its q
 *     list_experts  0 experts  1 lists
 *     rope       0 x     1 cos_sin           2 y      (y is x)
 *     kv_store   0 k     1 v  2 K  3 V  4 positions  5 slots  6 pages
 *     list_tiles 0 positions  1 slots        2 tiles
 *     attention  0 q     1 K  2 V  3 positions  4 tiles  5 pages  6 y, partials  7 sinks
 *     rope_store 0 k     1 v  2 K  3 V  4 positions  5 slots  6 pages  7 cos_sin  8 q
 *                9 q's weight  10 k's weight
 *     rotate     0 y
 *     attention_join  0 partials  1 y        2 sinks  3 q  4 gate
 *     glu        0 gate  1 up  2 scales      3 y  4 q
 *     add        0 a     1 b                 2 y
 *     scale      0 x     1 factors           2 y
 *     softcap    0 x     1 y
 *     route      0 logits  1 bias  2 experts  3 weights  4 lists
 *     experts_sum  0 x   1 weights           2 y
 *     delta_net  0 x  1 conv  2 a  3 dt  4 positions  5 slots  6 spans  7 ring  8 S  9 counts  10 y
 *     state_keep 0 x  1 positions  2 slots   3 ring
 *     gather     0 x     1 rows              2 y
 *     top        0 x     1 draws             2 parts
 *     pick       0 parts 1 draws  2 x        3 picks
 *     feed       0 picks 1 table  2 trail  3 draws  4 ids  5 positions  6 cos_sin
 *     spoil      0 y     1 count
 *
 * Activations are float[], ids, rows, positions, slots and pages int[], weights, K and V uint[]
 * (32-bit words; F32 vectors such as biases may be declared float[]). Views: element (r, c) of x is
 * x[r * x_stride + x_col0 + c]. y may be the same buffer as an input.
 *
 * A weight larger than a storage buffer range is cut by rows into slabs, one dispatch each: o0 is
 * the slab's first row, n_o its rows; row o0 + i of the weight is row i of the bound buffer. Rows are
 * packed as described in inc/README.
 *
 * Cache: the 64 rows of (page, head) of K begin at word (page * n_head_kv + head) * 64 * k_words;
 * inc/README has their order. Position i of sequence slot s is in page
 * pages[s * n_pages_max + i / 64], at i % 64. A page outside 0..n_pages-1 must not be read or
 * written. */

/* mat_vec: Grid: x = panels / OUTPUTS * n_rows / N_ROWS, each rounded up, those of a panel side by
 * side. Of quantized weights x is the output of quantize: x_stride and x_group in uvec4s, x_col0 0.
 *
 * Weights with groups, each padded to whole panels: group i of the slab is group group0 + i of the
 * weight. One product for each group (z): group g reads x from x_group * g on and writes y from
 * y_group * g on. By expert: x = panels / OUTPUTS, and the z-th of the experts touched takes the rows that chose
 * it. The i-th choice of a row reads x from x_group * i on and writes y from y_group * i on; the
 * bias goes by the weight's rows.
 *
 * With glu's kind, the outputs (of a group) are gates and as many that they gate: y gets both, `gated`
 * their product, and with quants of that the grid is x = n_blocks / OUTPUTS, else half the outputs / 32,
 * rounded up. Where the product lies in the gates' place, y gets no gates. With quants of y, its
 * columns are counted from y_col0 on. */
#define TD_VK_SPEC_FULL  16  /* constant_id: are all subgroups full? */
#define TD_VK_PANEL      64u /* rows of a weight that lie interleaved */
#define TD_VK_MUL_PLAIN  0u
#define TD_VK_MUL_GROUPS 1u
#define TD_VK_MUL_EXPERT 2u
#define TD_VK_GATES     32u /* of a panel, beside as many that they gate */
struct push_mat_mul {
    uint n_rows;
    uint n_k;      /* inputs: columns of the weight */
    uint n_o;      /* outputs in this slab, or in a group */
    uint o0;       /* first output of the slab; with groups 0 */
    uint w_units;  /* units of 16 bytes of a packed weight row */
    uint w_pitch;  /* rows of a panel: TD_VK_PANEL, or 1 */
    uint has_bias; /* bias[o0 + o] */
    uint x_col0, x_stride;
    uint y_col0, y_stride; /* output o goes to column y_col0 + o0 + o */
    uint group0, n_groups; /* of this slab */
    uint x_group, y_group;
    uint n_used; /* experts of a row */
    uint gated_col0, gated_stride;
    uint n_blocks;    /* of quants in a row of what is gated, or of y's */
    uint is_in_place; /* gated */
};

/* Which rows chose which expert. lists: word 0 the number of experts touched; from word 4 on three
 * words for each of them: the expert, where its choices begin, and how many there are; from
 * TD_VK_LIST_WORDS on the choices, n_used * row + i. An expert that does not exist is in none. Made
 * for two rows and more. Word 1 is route's. One workgroup. */
#define TD_VK_LIST_EXPERTS 1024u /* TD_EXPERTS_MAX */
#define TD_VK_LIST_WORDS   (4u + 3u * TD_VK_LIST_EXPERTS)
struct push_list_experts {
    uint n_rows;
    uint n_used;
};

/* n_groups groups of columns in a row, group g from x_group * g on. Grid: x = n_groups * n_blocks /
 * 64 rounded up, y = row. */
struct push_quantize {
    uint n_rows;
    uint n_k;      /* columns of a group */
    uint n_blocks; /* of 32 for a group, a multiple of 4 */
    uint n_groups;
    uint x_col0, x_stride, x_group;
};

/* Grid: x = n_cols / 1024 rounded up, y = row. Rows whose id lies in another slab, or in none, are
 * left alone. */
struct push_embed {
    uint n_rows;
    uint n_cols;
    uint o0, n_o; /* ids of this slab */
    uint w_units, w_pitch;
    uint ids_col0, ids_stride;
    uint y_col0, y_stride;
};

/* One workgroup per group (x) and row (y). Specialization constants: 0 what is normed, 1 whether it
 * quantizes, 2 what is made of the norm. */
#define TD_VK_NORM_X       0u
#define TD_VK_NORM_SUM     1u
#define TD_VK_NORM_GATHER  2u /* rows of x */
#define TD_VK_NORM_POST    3u /* x and the norm of b */
#define TD_VK_NORM_EXPERTS 4u /* x, and what experts add to it, */
#define TD_VK_NORM_SHARED  5u /* the shared one as well, */
#define TD_VK_NORM_GATED   6u /* by its gate */
#define TD_VK_NORM_PLAIN 0u
#define TD_VK_NORM_NONE  1u /* there is no norm */
#define TD_VK_NORM_SILU  2u /* y = glu(b, norm) */
struct push_rms_norm {
    uint n_rows;
    uint n_groups, group_cols;
    uint has_weight; /* weight[group_cols] */
    float eps;
    uint x_col0, x_stride;
    uint y_col0, y_stride;
    uint b_col0, b_stride;
    uint sum_col0, sum_stride;
    uint n_blocks; /* of quants in a row */
    uint n_rows_x; /* of which rows are gathered */
    uint n_used;   /* experts of a row */
    uint parts_col0, parts_stride;
    uint shared_col0, shared_stride;
    uint gate_col0, gate_stride;
};

/* One workgroup per head (x) and row (y). */
struct push_rope {
    uint n_rows;
    uint n_heads, head_dim;
    uint col0, n_rot; /* of a head */
    uint kind; /* 0: pairs (2i, 2i+1); 1: pairs (i, i + n_rot / 2) */
    uint x_col0, x_stride;
    uint cos_sin_col0, cos_sin_stride;
};

/* Grid: x = heads, y = row. */
struct push_rotate {
    uint n_rows;
    uint y_col0, y_stride;
};

/* Grid: x = units of 64 elements of a row, ceil(head_dim / 64) * n_head_kv, / 8 rounded up;
 * y = row; z = 0 for K, 1 for V. Specialization constants of kv_store and attention: 0 TYPE_K,
 * 1 TYPE_V (type ids: inc/kv.glsl), 2 HEAD_DIM_K, 3 HEAD_DIM_V. */
struct push_kv_store {
    uint n_rows;
    uint n_head_kv, head_dim_k, head_dim_v;
    uint k_words, v_words; /* words of a cache row of one head */
    uint k_col0, k_stride;
    uint v_col0, v_stride;
    uint n_pages_max; /* columns of the page table */
    uint n_slots;     /* rows of the page table */
    uint n_pages;     /* pages of the cache */
};

/* Grid: x = heads of q, k and v, y = row. Specialization constants as kv_store has them; 4: how many
 * columns of a head are normed; 5: what is rotated (td_kv_params), 1: keys, 2: values, 4: q. Without
 * columns to rotate by position it is a kv_store that rotates. */
#define TD_VK_ROPE_DIM_MAX 1024u /* of heads, as they lie in shared memory */
struct push_rope_store {
    uint n_rows;
    uint n_head, n_head_kv;
    uint k_words, v_words; /* as of kv_store; k_words 0: a latent cache */
    uint q_col0, q_stride;
    uint k_col0, k_stride;
    uint v_col0, v_stride;
    uint n_pages_max, n_slots, n_pages;
    uint col0, n_rot, kind; /* as of rope */
    uint cos_sin_col0, cos_sin_stride;
    float eps;
};

/* Tiles of attention: up to tile_rows rows of one sequence that stand together. tiles: word 0 their
 * number; from word TD_VK_TILE_HEAD on TD_VK_TILE_WORDS words for each: the first row, the number of
 * rows, their slot, the least and the greatest number of positions up to one of them. One workgroup,
 * a lane a row. */
#define TD_VK_TILE_ROWS  256 /* TD_PREFILL_ROWS_MAX */
#define TD_VK_TILE_HEAD  4u
#define TD_VK_TILE_WORDS 5u
struct push_list_tiles {
    uint n_rows;
    uint tile_rows;
};

/* A unit is a tile and block_heads of the query heads of a key/value head, which are n_blocks such
 * blocks. Grid: x = groups of `slices` units of a key/value head, then the next head's; z = strand.
 * If the rows of a sequence stand together, each workgroup has one group, else it may have more.
 * With several strands the results go to partials, for attention_join, which alone then takes the
 * sinks. */
#define TD_VK_ATTENTION_TILES(n_rows, tile_rows, n_slots)                                          \
    ((n_rows) <= (n_slots) ? (n_rows) : ((n_rows) - (n_slots)) / (tile_rows) + (n_slots))
#define TD_VK_ATTENTION_GROUPS(n_rows, tile_rows, n_slots, n_blocks, slices)                       \
    ((TD_VK_ATTENTION_TILES(n_rows, tile_rows, n_slots) * (n_blocks) + (slices) - 1u) / (slices))
struct push_attention {
    uint n_rows;
    uint n_head, n_head_kv;
    uint k_words, v_words;
    float scale;
    uint window, chunk; /* 0: none */
    float softcap;      /* 0: none */
    uint has_sinks;
    uint q_col0, q_stride;
    uint y_col0, y_stride;
    uint n_pages_max, n_slots, n_pages;
    uint n_strands;
    uint tile_rows, n_blocks, block_heads;
};

/* One workgroup per query head (x) and row (y). */
#define TD_VK_JOIN_DIM 256u /* columns of a head that are joined at once */
struct push_attention_join {
    uint n_rows;
    uint n_head, head_dim_v, n_strands;
    uint has_sinks;
    uint y_col0, y_stride;
    uint gate_col0, gate_stride;
};

/* add. Grid: x = n_cols / 256 rounded up, y = row. */
struct push_add {
    uint n_rows;
    uint n_cols;
    uint a_col0, a_stride;
    uint b_col0, b_stride;
    uint y_col0, y_stride;
};

/* Grid as push_add, or where it quantizes x = n_groups * n_blocks / 32 rounded up. Specialization constants: 0 the kind, as
 * td_glu_kind counts, 1 whether it quantizes. */
struct push_glu {
    uint n_rows;
    uint n_cols;
    uint n_gates;             /* columns of gate: 1 or n_cols */
    uint n_scales, n_a_scale; /* scales of a row, columns that share one; 0: there are none */
    uint n_a_group, group_stride; /* columns of gate, and of up, that stand together */
    uint gate_col0, gate_stride;
    uint up_col0, up_stride;
    uint y_col0, y_stride;
    uint n_k, n_blocks, n_groups; /* of quants: as of push_quantize */
};

/* Grid as push_add. */
struct push_scale {
    uint n_rows;
    uint n_cols;
    float factor;
    uint has_factors, factors_col0, factors_stride;
    uint x_col0, x_stride;
    uint y_col0, y_stride;
};

/* Grid as push_add. */
struct push_softcap {
    uint n_rows;
    uint n_cols;
    float cap;
    uint x_col0, x_stride;
    uint y_col0, y_stride;
};

/* One workgroup per row (y). Specialization constant 0: whether it lists who chose whom. */
struct push_route {
    uint n_rows;
    uint n_experts, n_used;
    uint gating; /* as td_gating counts */
    uint n_groups, n_groups_used;
    uint is_normalized, has_bias;
    float scale;
    uint x_col0, x_stride;
};

/* Grid as push_add. */
struct push_experts_sum {
    uint n_rows;
    uint n_cols, n_used;
    uint x_col0, x_stride;
    uint y_col0, y_stride;
};

/* Recurrent state. S: [slot][head][row][column] floats; counts: [slot][head][block of
 * TD_VK_STATE_COLS columns]; ring: [slot][n_pending][n_cols]. Grid of delta_net: x = head * blocks +
 * block, y = sequences of the batch, at most; specialization constants: 0 dim, 1 taps. Of
 * state_keep: x = n_cols / 256 rounded up, y = row. */
#define TD_VK_STATE_COLS    32u
#define TD_VK_STATE_DIM_MAX 256u
struct push_delta_net {
    uint n_rows;
    uint n_slots, n_head_k, n_head_v;
    uint n_pending, n_cols; /* of x and of the ring */
    uint is_grouped;                /* v head h has k head h / (n_head_v / n_head_k) */
    float eps;
    uint x_col0, x_stride;
    uint y_col0, y_stride;
};
struct push_state_keep {
    uint n_rows;
    uint n_slots, n_pending, n_cols;
    uint x_col0, x_stride;
};

/* Grid as push_add. A row index outside 0..n_rows_x-1 gives zeros. */
struct push_gather {
    uint n_rows;
    uint n_cols;
    uint n_rows_x;
    uint x_col0, x_stride;
    uint y_col0, y_stride;
};

/* Grid: x = chunks of 4096 columns, y = row. y is `parts`; y_stride its words a row. */
struct push_top {
    uint n_rows;
    uint n_cols;
    uint x_col0, x_stride;
    uint y_stride;
};

/* One workgroup per row (y). x are the logits; parts_stride words of a row of parts. */
struct push_pick {
    uint n_rows;
    uint n_parts, parts_stride;
    uint n_cols;
    uint x_col0, x_stride;
};

/* One workgroup. */
struct push_spoil {
    uint n_rows;
    uint n_rows_max; /* of y */
    uint n_cols;
    uint how; /* td_spoil */
    uint y_col0, y_stride;
};

/* One workgroup. */
struct push_feed {
    uint n_rows;
    uint n_steps_max; /* rows of trail */
    uint n_positions; /* rows of the table */
    uint table_units, table_pitch; /* as w_units, w_pitch of push_mat_mul */
    uint n_rot;
};
