/* SPDX-License-Identifier: Apache-2.0 */
/* A second-stage bootloader: picks a slot by its OTA record, copies the application's RAM segments, jumps.
 *
 * It is what an example needs and no more. It has no rollback, no secure boot and no DICE: a product takes the
 * bootloader of ESP-IDF for the first two, and docs/device-protocol.md says what the third has to do. */
#include "board.h"

#define SECTOR 0x1000u
#define IMAGE_MAGIC 0xE9
#define MAX_SEGMENTS 16
enum { INVALID = 3, ABORTED = 4 };

/* Two functions of the chip's ROM: lengths and addresses in multiples of 4. */
static int (*const flash_read)(uint32_t at, void *to, int32_t size) = (void *)0x40000130;
static uint32_t (*const crc32_le)(uint32_t start, const uint8_t *data, uint32_t size) = (void *)0x40000628;

struct ota_record {
    uint32_t seq;
    uint8_t label[20];
    uint32_t state, crc;
};
struct image_header {
    uint8_t magic, segments, mode, size_freq;
    uint32_t entry;
    uint8_t rest[16];
};
struct segment {
    uint32_t address, size;
};

static uint32_t selected_slot(void)
{
    uint32_t best = 1; /* without a record: the first slot */
    for (uint32_t sector = 0; sector < 2; sector++) {
        struct ota_record record;
        if (flash_read(OTADATA_AT + sector * SECTOR, &record, sizeof record) != 0)
            continue;
        if (record.seq == 0xFFFFFFFF || record.state == INVALID || record.state == ABORTED)
            continue;
        if (crc32_le(0xFFFFFFFF, (const uint8_t *)&record.seq, 4) == record.crc && record.seq > best)
            best = record.seq;
    }
    return (best - 1) % 2 == 0 ? SLOT_0_AT : SLOT_1_AT;
}

static int in_ram(uint32_t address, uint32_t size)
{
    /* Internal memory, by its data and its instruction addresses, up to where this program itself lives. */
    return (address >= 0x3FC80000 && size <= 0x3FCC0000 - 0x3FC80000 && address + size <= 0x3FCC0000) ||
           (address >= 0x40380000 && size <= 0x403C0000 - 0x40380000 && address + size <= 0x403C0000);
}

static uint32_t load(uint32_t at)
{
    struct image_header header;
    if (flash_read(at, &header, sizeof header) != 0 || header.magic != IMAGE_MAGIC || header.segments > MAX_SEGMENTS)
        return 0;
    at += sizeof header;
    for (int number = 0; number < header.segments; number++) {
        struct segment segment;
        if (flash_read(at, &segment, sizeof segment) != 0)
            return 0;
        at += sizeof segment;
        if (in_ram(segment.address, segment.size) &&
            flash_read(at, (void *)segment.address, (int32_t)segment.size) != 0)
            return 0;
        at += segment.size;
    }
    return header.entry;
}

void app_start(void)
{
    watchdogs_off();
    print("boot\r\n");
    uint32_t entry = load(selected_slot());
    if (!entry) {
        print("no application\r\n");
        for (;;) {
        }
    }
    ((void (*)(void))entry)();
}
