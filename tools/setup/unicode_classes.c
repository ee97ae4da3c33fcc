/* Writes runtime/unicode_classes.inc from utf8proc's tables:
 *
 *     deps=$(make -s deps)
 *     cc -I$deps/include tools/setup/unicode_classes.c $deps/lib/libutf8proc.a -o build/unicode_classes
 *     build/unicode_classes >runtime/unicode_classes.inc
 *
 * The tests compare every character with utf8proc. */
#include <stdio.h>
#include <utf8proc.h>

/* The numbers of enum drllm_unicode_class. */
static unsigned class_of(utf8proc_int32_t value) {
    switch (utf8proc_category(value)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return 1;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return 2;
    case UTF8PROC_CATEGORY_PC:
    case UTF8PROC_CATEGORY_PD:
    case UTF8PROC_CATEGORY_PS:
    case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI:
    case UTF8PROC_CATEGORY_PF:
    case UTF8PROC_CATEGORY_PO:
        return 3;
    default:
        /* CJK ideographs of Unicode 15.1, which utf8proc 2.8 does not know yet. */
        return value >= 0x2EBF0 && value <= 0x2EE5D ? 1 : 0;
    }
}

int main(void) {
    unsigned last = 0, n = 0;
    printf("/* Made by tools/setup/unicode_classes.c from Unicode %s: where the class changes, 4 x the first character "
           "of the\n"
           " * range + its class. */\n",
           utf8proc_unicode_version());
    for (utf8proc_int32_t value = 0; value <= 0x10FFFF; value++) {
        const unsigned class = class_of(value);
        if (class != last) {
            printf("0x%X,%s", 4 * (unsigned)value + class, n % 12 == 11 ? "\n" : " ");
            last = class;
            n++;
        }
    }
    printf("\n/* %u ranges */\n", n);
    return ferror(stdout) || fclose(stdout) != 0;
}
