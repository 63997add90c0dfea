/* CRC-32C, of messages and of what is kept on disk: it tells damage, not malice. Any thread. */
#ifndef TD_BASE_CRC32C_H
#define TD_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of bytes[n_bytes] behind those that gave crc; 0: behind none. */
uint32_t td_crc32c(uint32_t crc, const void *bytes, size_t n_bytes);

#endif
