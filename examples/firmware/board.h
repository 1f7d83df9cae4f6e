/* SPDX-License-Identifier: Apache-2.0 */
/* The few registers of an ESP32-C3 that these programs use (ESP32-C3 Technical Reference Manual). */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

#define REG(address) (*(volatile uint32_t *)(address))

/* Three watchdogs run when the ROM hands over; nothing here feeds them. Each is unlocked by its key first. */
static inline void watchdogs_off(void)
{
    REG(0x6001F064) = 0x50D83AA1; /* timer group 0 */
    REG(0x6001F048) = 0;
    REG(0x600080A8) = 0x50D83AA1; /* RTC */
    REG(0x60008090) = 0;
    REG(0x600080B0) = 0x8F1D312A; /* super watchdog */
    REG(0x600080AC) |= 1u << 31;
}

/* UART 0, at the 115,200 Bd that the ROM has set. Its queues hold 128 bytes. */
static inline int uart_has_input(void) { return (REG(0x6000001C) & 0x3FF) != 0; }
static inline char uart_read(void) { return (char)REG(0x60000000); }
static inline void uart_write(char c)
{
    while (((REG(0x6000001C) >> 16) & 0x3FF) > 120) {
    }
    REG(0x60000000) = (uint8_t)c;
}

static inline void print(const char *text)
{
    while (*text)
        uart_write(*text++);
}

static inline void print_number(int32_t value)
{
    if (value < 0) {
        uart_write('-');
        value = -value;
    }
    if (value >= 10)
        print_number(value / 10);
    uart_write((char)('0' + value % 10));
}

#endif
