/* td_op_embed against the decoders of kernels/types.c: equal values on every device (bits on the
 * host; a shader's fma makes +0 where d * 0 is -0), for every type, odd lengths, repeated ids and
 * the first and last row. Ids are right by the caller's check, so none outside the table is
 * tried. */
#include "op_common.h"

static void check_row(const float *got, const float *want, uint32_t n, const td_type_info *type,
                      const td_device *dev)
{
    if (is_bit_equal_to_scalar(dev))
        check_same_bits(got, want, n, type->name, dev);
    for (uint32_t i = 0; i < n; i++)
        check_close(got[i], (double)want[i], 0.0, i, type->name, dev);
}

static void check_embed(td_device *dev, const td_type_info *type, uint32_t n_vocab, uint32_t n_cols,
                        uint32_t y_pad)
{
    enum { N_ROWS = 7 };
    unsigned char *rows = new_random_rows(type, n_vocab, n_cols, n_cols);
    float *want = new_decoded(type, rows, n_vocab, n_cols);
    bench b = bench_begin(dev, TD_MODE_VERIFY, N_ROWS, 0);
    td_tensor *ids = bench_tensor(&b, TD_ELEM_I32, TD_ROWS_BATCH, N_ROWS, 1);
    td_tensor *y = bench_tensor(&b, TD_ELEM_F32, TD_ROWS_BATCH, N_ROWS, n_cols + 2 * y_pad);
    td_op_embed(b.p, bench_weight(&b, type, n_vocab, n_cols, rows), td_all(ids),
                td_columns(y, y_pad, n_cols));
    bench_end(&b);
    const uint32_t picks[N_ROWS] = {n_vocab - 1, 0, n_vocab / 2, 0, n_vocab / 3, n_vocab - 1, 1};
    for (uint32_t r = 0; r < N_ROWS; r++)
        i32_data(ids)[r] = (int32_t)(picks[r] % n_vocab);
    for (size_t i = 0; i < (size_t)N_ROWS * (n_cols + 2 * y_pad); i++)
        f32_data(y)[i] = 12345.0f;
    bench_run(&b, N_ROWS - 1, 0);
    for (uint32_t r = 0; r < N_ROWS - 1; r++) {
        const float *row = f32_data(y) + (size_t)r * (n_cols + 2 * y_pad);
        check_row(row + y_pad, want + (size_t)(picks[r] % n_vocab) * n_cols, n_cols, type, dev);
        for (uint32_t i = 0; i < y_pad; i++)
            assert_true(row[i] == 12345.0f && row[y_pad + n_cols + i] == 12345.0f);
    }
    for (uint32_t i = 0; i < n_cols; i++) /* the row that did not run */
        assert_true(f32_data(y)[(size_t)(N_ROWS - 1) * (n_cols + 2 * y_pad) + i] == 12345.0f);
    bench_destroy(&b);
    free(want);
    free(rows);
}

static void test_embed_decodes_rows_bit_for_bit(void **state)
{
    (void)state;
    for (size_t t = 0; t < TD_COUNT(weight_types); t++) {
        const td_type_info *type = chosen_type(t);
        if (!type)
            continue;
        for (size_t i = 0; i < n_test_devices; i++) {
            check_embed(test_devices[i], type, 1, type->block_elements, 0);
            check_embed(test_devices[i], type, 300, 3 * type->block_elements, 2);
            check_embed(test_devices[i], type, 4097, td_round_up(64, type->block_elements), 0);
        }
    }
}

static void test_embed_takes_odd_lengths_of_plain_types(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {1, 2, 3, 5, 7, 9, 33, 1025};
    for (size_t t = 0; t < N_PLAIN_TYPES; t++)
        for (size_t l = 0; l < TD_COUNT(lengths); l++)
            for (size_t i = 0; i < n_test_devices; i++)
                check_embed(test_devices[i], td_type_find_name(weight_types[t]), 17, lengths[l], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed_decodes_rows_bit_for_bit),
        cmocka_unit_test(test_embed_takes_odd_lengths_of_plain_types),
    };
    return TEST_MAIN(tests);
}
