# What each archive or object adds to a linked program: reads the map that GNU ld's -Map writes, prints "BYTES NAME" for
# each, of all sections that are loaded from the file (code, constants, data with a value), in no order.
function number(hex, i, n) {
    hex = tolower(substr(hex, 3))
    for (i = 1; i <= length(hex); i++)
        n = n * 16 + index("0123456789abcdef", substr(hex, i, 1)) - 1
    return n
}
/^Linker script and memory map/ { inside = 1 }
/^\/DISCARD\// { inside = 0 }
!inside { next }
# A long name has the rest on the next line.
/^ [^ *(]+$/ {
    name = $1
    getline
    $0 = " " name " " $0
}
/^ [^ *(]+ +0x[0-9a-f]+ +0x[0-9a-f]+ [^ ]/ && $1 !~ /^\.(debug|comment|note|bss|tbss|gnu\.warning|gnu_debug)/ && $1 != "COMMON" {
    file = $4
    sub(/.*\//, "", file)
    if (!by_object)
        sub(/\(.*/, "", file)
    bytes[file] += number($3)
}
END {
    for (file in bytes)
        if (bytes[file] != 0)
            print bytes[file], file
}
