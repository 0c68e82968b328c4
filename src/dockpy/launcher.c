/* dockpy: the command itself. Starts the client with the interpreter beside this program, without
 * `site` and without anything of the caller's environment (-IS), which a script's first line cannot
 * ask for once an installer has rewritten it. Found through /proc/self/exe, so that links to it work.
 */
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLIENT "import sys; sys.path.insert(0, sys.argv.pop(1)); from client import main; main()"

int main(int argc, char **argv) {
    char self[PATH_MAX], python[PATH_MAX + 32], api[PATH_MAX + 96];
    ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    if (size < 0) {
        perror("dockpy: /proc/self/exe");
        return 125;
    }
    self[size] = 0;
    const char *bin = dirname(self);
    snprintf(python, sizeof python, "%s/python3", bin);
    snprintf(api, sizeof api, "%s/../lib/python" PYTHON_VERSION "/site-packages/dockpy/api", bin);
    const char **command = calloc(argc + 6, sizeof *command);
    if (command == NULL) return 125;
    int at = 0;
    command[at++] = python;
    if (access(api, F_OK) == 0) {
        command[at++] = "-IS";
        command[at++] = "-c";
        command[at++] = CLIENT;
        command[at++] = api;
    } else { /* installed in place, for work on dockpy itself */
        command[at++] = "-I";
        command[at++] = "-m";
        command[at++] = "dockpy";
    }
    for (int i = 1; i < argc; i++) command[at++] = argv[i];
    execv(python, (char **)command);
    fprintf(stderr, "dockpy: cannot start %s: ", python);
    perror(NULL);
    return 125;
}
