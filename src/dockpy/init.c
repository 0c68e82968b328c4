/* init: PID 1 of a container that asked for one. Starts the program given after "--", passes every
 * signal on to it, reaps whatever is left to it, and leaves with the program's own status (128+n
 * for signal n). Holds no descriptor and no memory worth reading. Static, so that it needs nothing
 * of the image.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

static int leave_with(int status) {
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void become_program(char **argv, const sigset_t *before) {
    /* A process group of its own, in the foreground where there is a terminal: job control works. */
    setpgid(0, 0);
    signal(SIGTTOU, SIG_IGN);
    tcsetpgrp(STDIN_FILENO, getpgrp());
    signal(SIGTTOU, SIG_DFL);
    sigprocmask(SIG_SETMASK, before, NULL);
    execvp(argv[0], argv);
    const char *why = strerror(errno);
    int code = errno == ENOENT || errno == ENOTDIR ? 127 : 126;
    const char *parts[] = {"init: ", argv[0], ": ", why, "\n"};
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
        if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0) break;
    _exit(code);
}

int main(int argc, char **argv) {
    if (argc < 3 || strcmp(argv[1], "--") != 0) return 125;
    sigset_t every, before;
    sigfillset(&every);
    sigprocmask(SIG_SETMASK, &every, &before);
    pid_t program = fork();
    if (program < 0) return 125;
    if (program == 0) become_program(argv + 2, &before);
    for (;;) {
        siginfo_t info;
        int number = sigwaitinfo(&every, &info);
        if (number < 0) continue;
        if (number != SIGCHLD) {
            kill(program, number);
            continue;
        }
        int status;
        pid_t ended;
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0)
            if (ended == program) return leave_with(status);
    }
}
