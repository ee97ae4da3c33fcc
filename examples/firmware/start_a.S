/* From reset to main on AArch64 at EL1, one core: floating point, memory with caches (without them unaligned accesses
 * fault), a stack. */
    .section .text.start, "ax"
    .global _start
_start:
    mrs x0, mpidr_el1
    and x0, x0, #0xff
    cbnz x0, halt

    mov x0, #(3 << 20) /* CPACR_EL1.FPEN */
    msr cpacr_el1, x0
    isb

    /* One level of the page table, blocks of 1 GiB: devices, then memory. */
    adrp x0, page_table
    add x0, x0, :lo12:page_table
    add x1, x0, #4096
0:  str xzr, [x1, #-8]!
    cmp x1, x0
    b.hi 0b
    mov x1, #0x405 /* a block, access flag, attribute 1 */
    str x1, [x0]
    mov x2, #1
1:  lsl x3, x2, #30
    mov x1, #0x701 /* a block, access flag, inner shareable, attribute 0 */
    orr x1, x1, x3
    str x1, [x0, x2, lsl #3]
    add x2, x2, #1
    cmp x2, #4
    b.lt 1b
    ldr x1, =0x00ff /* attribute 0: write-back memory; 1: device */
    msr mair_el1, x1
    ldr x1, =0x803519 /* 39-bit addresses, 4 KiB pages, cached walks, no second table, 4 GiB of memory */
    msr tcr_el1, x1
    msr ttbr0_el1, x0
    dsb sy
    isb
    mrs x1, sctlr_el1
    mov x2, #0x1005 /* M, C, I */
    orr x1, x1, x2
    bic x1, x1, #2 /* A: unaligned accesses are allowed */
    msr sctlr_el1, x1
    isb

    ldr x0, =vectors
    msr vbar_el1, x0
    ldr x0, =stack_top
    mov sp, x0
    ldr x0, =bss_begin
    ldr x1, =bss_end
2:  cmp x0, x1
    b.hs 3f
    str xzr, [x0], #8
    b 2b
3:  bl main
    bl board_exit
halt:
    wfi
    b halt

/* Any exception is a fault. */
    .balign 2048
vectors:
    .rept 16
    mov x0, #99
    bl board_exit
    .balign 128
    .endr

    .section .page_table, "aw", %nobits
    .balign 4096
page_table:
    .space 4096
