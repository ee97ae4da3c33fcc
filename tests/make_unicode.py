#!/usr/bin/env python3
"""Write platform/firmware/unicode_classes.inc, the classes of Unicode that pre-tokenisers ask for, from utf8proc.

usage: tests/make_unicode.py DEPS >platform/firmware/unicode_classes.inc      (DEPS: what `make -s deps` prints)
tests/test_firmware.c compares the result with utf8proc, for every code point.
"""
import subprocess
import sys
import tempfile

SOURCE = r"""
#include <stdio.h>
#include <utf8proc.h>
int main(void) {
    unsigned before = 0;
    for (int value = 0; value < 0x110000; value++) {
        const utf8proc_category_t c = utf8proc_category(value);
        const unsigned kind = c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO   ? 1
                              : c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO ? 2
                              : c >= UTF8PROC_CATEGORY_PC && c <= UTF8PROC_CATEGORY_PO ? 3
                                                                                       : 0;
        if (kind != before) {
            printf("0x%x\n", (unsigned)value << 2 | kind);
        }
        before = kind;
    }
    return 0;
}
"""
deps = sys.argv[1]
with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/classes.c", "w", encoding="ascii") as file:
        file.write(SOURCE)
    subprocess.run(
        ["cc", f"-I{deps}/include", f"{folder}/classes.c", f"{deps}/lib/libutf8proc.a", "-o", f"{folder}/classes"], check=True
    )
    starts = subprocess.run([f"{folder}/classes"], check=True, capture_output=True, text=True).stdout.split()
print("/* Made by tests/make_unicode.py. Where a class begins: code point * 4 + enum drllm_unicode_class. */")
for i in range(0, len(starts), 12):
    print(", ".join(starts[i : i + 12]) + ",")
