/* SPDX-License-Identifier: Apache-2.0 */
/* Entry point: a stack, no stale variables, and on. */
    .file "start.S" /* else the name of a temporary file would be in the ELF file, and its hash in the image */
    .section .entry, "ax"
    .global _start
_start:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    la sp, stack_top
    la a0, bss_start
    la a1, bss_end
1:  bgeu a0, a1, 2f
    sw zero, 0(a0)
    addi a0, a0, 4
    j 1b
2:  j app_start
