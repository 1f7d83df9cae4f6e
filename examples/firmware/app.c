/* SPDX-License-Identifier: Apache-2.0 */
/* What both applications share: the descriptor, the start, the line that says who runs. */
#include "app.h"
#include "board.h"

/* esp_app_desc_t of ESP-IDF, 256 bytes, first in the first segment. Date and time stay empty, so that the same sources
 * give the same bytes on any day; elf2image writes the ELF file's SHA-256 in. */
struct app_desc {
    uint32_t magic, secure_version, reserved_1[2];
    char version[32], project_name[32], time[16], date[16], idf_ver[32];
    uint8_t elf_sha256[32];
    uint16_t min_efuse_block_rev, max_efuse_block_rev;
    uint8_t mmu_page_size; /* log2 */
    uint8_t reserved_2[75];
};
_Static_assert(sizeof(struct app_desc) == 256, "the bootloader reads 256 bytes");

__attribute__((section(".app_desc"), used)) const struct app_desc esp_app_desc = {
    .magic = 0xABCD5432,
    .secure_version = SECURE_VERSION,
    .version = APP_VERSION,
    .project_name = APP_NAME,
    .idf_ver = "bare-metal",
    .max_efuse_block_rev = 99,
    .mmu_page_size = 16,
};

void app_start(void)
{
    watchdogs_off();
    print(APP_NAME " " APP_VERSION "\r\n");
    for (;;) {
        while (!uart_has_input()) {
        }
        app_input(uart_read());
    }
}
