/* drllm serve, in a program that was built with SERVE=0. */
#include "tools/commands.h"
#include "tools/common.h"

int serve_main(const struct command *command, int argc, char **argv) {
    int exit_code;
    if (options_parse(command, NULL, 0, argc, argv, NULL, &exit_code)) {
        report(command, "this program was built without libmicrohttpd (SERVE=0)");
        exit_code = TOOL_FAILED;
    }
    return exit_code;
}
