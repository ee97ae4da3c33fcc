# bash completion for drllm -*- shell-script -*-
# Commands, options and the words that options take are read from the program's own help, so that they are always its own.

_drllm() {
    local cur prev command help line words
    cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]-}
    COMPREPLY=()
    if [ "$COMP_CWORD" = 1 ] || { [ "$COMP_CWORD" = 2 ] && [ "$command" = help ]; }; then
        help=$("${COMP_WORDS[0]}" help 2>/dev/null | sed -n 's/^  \([a-z][a-z]*\)  *[A-Z].*/\1/p')
        mapfile -t COMPREPLY < <(compgen -W "$help help" -- "$cur")
        return
    fi
    help=$("${COMP_WORDS[0]}" "$command" --help 2>/dev/null)
    # The line of the option in front: what it takes stands behind its name.
    line=$(grep -E -- "^  (-., |    )$prev( |$)|^  $prev, " <<<"$help" | head -n 1)
    words=
    [[ $prev != -* || -z $line ]] || words=$(sed -E 's/^ *(-., )?--[a-z0-9-]+ ?//; s/  .*//' <<<"$line")
    case $words in
        *'|'*) mapfile -t COMPREPLY < <(compgen -W "${words//|/ }" -- "$cur") ;;
        FILE*)
            compopt -o filenames 2>/dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            ;;
        ?*) ;; # a number or a text
        *)
            if [[ $cur == -* ]]; then
                mapfile -t COMPREPLY < <(compgen -W "$(grep -oE -- '^  (-., |    )--[a-z0-9-]+' <<<"$help" |
                    grep -oE -- '--[a-z0-9-]+')" -- "$cur")
            else
                compopt -o filenames 2>/dev/null
                mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            fi
            ;;
    esac
}
complete -F _drllm drllm
