# Counting tests of shell scripts; read by them, not run.
# shellcheck shell=bash
passed=0 failed=0 skipped=0

# case_of NAME COMMAND...: what it prints is shown if it fails.
case_of() {
    local name=$1 out
    shift
    if out=$("$@" 2>&1 </dev/null); then
        passed=$((passed + 1))
        printf 'ok      %s\n' "$name"
    else
        failed=$((failed + 1))
        printf '%s\nFAILED  %s\n' "$(tail -n 25 <<<"$out")" "$name"
    fi
}

skip() {
    skipped=$((skipped + 1))
    printf 'skipped %s: %s\n' "$1" "$2"
}

finish_cases() {
    printf '%d passed, %d failed%s\n' $passed $failed "$([ $skipped = 0 ] || echo ", $skipped skipped")"
    [ $failed = 0 ] && [ $passed != 0 ]
}
