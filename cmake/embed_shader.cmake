# cmake -DINPUT=x.spv -DOUTPUT=x.spv.c -DSYMBOL=s -P: a SPIR-V file as a C array of its words.
file(READ ${INPUT} hex HEX)
string(LENGTH "${hex}" n_digits)
math(EXPR n_words "${n_digits} / 8")
string(REGEX REPLACE "(..)(..)(..)(..)" "0x\\4\\3\\2\\1,\n" words "${hex}")
file(WRITE ${OUTPUT} "#include <stddef.h>
#include <stdint.h>
extern const uint32_t ${SYMBOL}[];
extern const size_t ${SYMBOL}_n_words;
const uint32_t ${SYMBOL}[] = {
${words}};
const size_t ${SYMBOL}_n_words = ${n_words};
")
