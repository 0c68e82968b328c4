/* dockpy: the command itself. Goes the client's plain way (quick.c), or starts the client with the interpreter beside this program, without
 * `site` and without anything of the caller's environment (-IS), which a script's first line cannot
 * ask for once an installer has rewritten it. Found through /proc/self/exe, so that links to it work.
 * An installation for work on dockpy itself has its package elsewhere: SOURCE is that directory.
 */
#define _GNU_SOURCE
#include "quick.h"

#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifndef SOURCE
#define SOURCE ""
#endif

/* A package object of our own: dockpy/__init__.py and all it imports are not needed. */
#define PACKAGE                                                            \
    "import sys; p = type(sys)('dockpy'); p.__path__ = [sys.argv.pop(1)];" \
    "sys.modules['dockpy'] = p; from dockpy.api.client import "
#define CLIENT PACKAGE "main; main()"
#define REST PACKAGE "go_on; go_on()"

/* A timeline (dockpy run --trace, DOCKPY_TRACE) begins here, before anything else looks at a clock. */
static void tell_begin(int argc, char **argv) {
    static char text[32];
    struct timespec now;
    const char *always = getenv("DOCKPY_TRACE");
    int wanted = always != NULL && *always != 0 && strcmp(always, "0") != 0;
    for (int i = 1; i < argc && !wanted; i++) wanted = strcmp(argv[i], "--trace") == 0;
    if (!wanted || clock_gettime(CLOCK_MONOTONIC, &now) != 0) {
        unsetenv("DOCKPY_TRACE_BEGAN"); /* somebody else's */
        return;
    }
    snprintf(text, sizeof text, "%lld", (long long)now.tv_sec * 1000000000 + now.tv_nsec);
    setenv("DOCKPY_TRACE_BEGAN", text, 1);
}

int main(int argc, char **argv) {
    tell_begin(argc, argv);
    static const char *const below[] = {
        "../lib/python" PYTHON_VERSION "/site-packages/dockpy",
        "../lib64/python" PYTHON_VERSION "/site-packages/dockpy",
    };
    static char self[PATH_MAX], python[PATH_MAX + 32], found[PATH_MAX + 96];
    const char *package = NULL;
    ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    if (size < 0) {
        perror("dockpy: /proc/self/exe");
        return 125;
    }
    self[size] = 0;
    const char *bin = dirname(self);
    snprintf(python, sizeof python, "%s/python3", bin);
    for (size_t i = 0; package == NULL && i < sizeof below / sizeof *below; i++) {
        snprintf(found, sizeof found, "%s/%s", bin, below[i]);
        if (access(found, F_OK) == 0) package = found;
    }
    if (package == NULL && access(SOURCE, F_OK) == 0) package = SOURCE;
    const char **command = calloc((size_t)argc + 6, sizeof *command);
    if (command == NULL) return 125;
    int at = 0, rest = package == NULL ? QUICK_NOT : quick(argc, argv);
    char number[16];
    command[at++] = python;
    if (rest != QUICK_NOT) {
        snprintf(number, sizeof number, "%d", rest);
        command[at++] = "-IS";
        command[at++] = "-c";
        command[at++] = REST;
        command[at++] = package;
        command[at++] = number;
        argc = 1;
    } else if (package != NULL) {
        command[at++] = "-IS";
        command[at++] = "-c";
        command[at++] = CLIENT;
        command[at++] = package;
    } else { /* some other layout: the interpreter knows where its packages are, and takes longer */
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
