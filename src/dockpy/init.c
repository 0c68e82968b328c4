/* init: PID 1 of a container that asked for one.
 *
 *   init -- PROGRAM [ARGUMENT ...]
 *
 * Starts the program in a process group of its own (in the foreground where there is a terminal),
 * passes every signal on to it, reaps whatever is left to it, and leaves with the program's own
 * status: 128+n for signal n, 127 for a program that is missing, 126 for one that cannot be
 * executed. Keeps no descriptor open, so the end of the program's output is seen when it closes it.
 * Needs nothing of the image and no C library: a few KB, one page of them written.
 * Source: pid_namespaces(7), setpgid(2), sigwaitinfo(2), execvp(3).
 */
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/signal.h>
#include <linux/wait.h>

#define TIOCSPGRP 0x5410 /* the same on every machine of asm-generic */
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#if defined(__x86_64__)
static long sys(long number, long a, long b, long c, long d) {
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = 0;
    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                     : "rcx", "r11", "memory");
    return number;
}
__asm__(".globl _start\n_start: xorl %ebp, %ebp; movq %rsp, %rdi; andq $-16, %rsp; call start");
#elif defined(__aarch64__)
static long sys(long number, long a, long b, long c, long d) {
    register long name __asm__("x8") = number;
    register long first __asm__("x0") = a;
    register long second __asm__("x1") = b;
    register long third __asm__("x2") = c;
    register long fourth __asm__("x3") = d;
    register long fifth __asm__("x4") = 0;
    __asm__ volatile("svc #0"
                     : "+r"(first)
                     : "r"(name), "r"(second), "r"(third), "r"(fourth), "r"(fifth)
                     : "memory");
    return first;
}
__asm__(".globl _start\n_start: mov x29, xzr; mov x0, sp; b start");
#else
#error "init knows how to call the kernel of x86_64 and aarch64"
#endif

#define call(number, a, b, c, d) sys(number, (long)(a), (long)(b), (long)(c), (long)(d))

static _Noreturn void leave(int code) {
    for (;;) call(__NR_exit_group, code, 0, 0, 0);
}

static unsigned long length(const char *text) {
    unsigned long n = 0;
    while (text[n]) n++;
    return n;
}

static int same(const char *a, const char *b) {
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

static void say(const char *text) { call(__NR_write, 2, text, length(text), 0); }

static const char *path_of(char **environment) {
    for (; *environment; environment++) {
        const char *entry = *environment;
        if (entry[0] == 'P' && entry[1] == 'A' && entry[2] == 'T' && entry[3] == 'H' && entry[4] == '=')
            return entry[5] ? entry + 5 : DEFAULT_PATH;
    }
    return DEFAULT_PATH;
}

/* Tries every place of PATH; what refused is remembered, what is missing is not. */
static long execute(char **argv, char **environment) {
    static char candidate[4096];
    const char *name = argv[0], *path = path_of(environment);
    unsigned long size = length(name);
    long refused = -ENOENT;
    for (const char *one = name; *one; one++)
        if (*one == '/') return call(__NR_execve, name, argv, environment, 0);
    if (!size) return -ENOENT;
    for (;;) {
        unsigned long n = 0;
        while (path[n] && path[n] != ':') n++;
        if (n + size + 3 < sizeof candidate) {
            unsigned long at = 0;
            if (n == 0) candidate[at++] = '.';
            for (unsigned long i = 0; i < n; i++) candidate[at++] = path[i];
            candidate[at++] = '/';
            for (unsigned long i = 0; i <= size; i++) candidate[at++] = name[i];
            long error = call(__NR_execve, candidate, argv, environment, 0);
            if (error == -EACCES) refused = error;
            else if (error != -ENOENT && error != -ENOTDIR) return error;
        }
        if (!path[n]) return refused;
        path += n + 1;
    }
}

static _Noreturn void become(char **argv, char **environment, const unsigned long *before) {
    /* Every signal is blocked: taking the terminal cannot stop us with SIGTTOU. */
    int group = (int)call(__NR_getpid, 0, 0, 0, 0);
    call(__NR_setpgid, 0, 0, 0, 0);
    call(__NR_ioctl, 0, TIOCSPGRP, &group, 0);
    call(__NR_rt_sigprocmask, SIG_SETMASK, before, 0, 8);
    long error = execute(argv, environment);
    int missing = error == -ENOENT || error == -ENOTDIR;
    say("init: ");
    say(argv[0]);
    say(missing ? ": no such program in the container; check its name and PATH\n"
                : ": cannot be executed; check its permissions and architecture\n");
    leave(missing ? 127 : 126);
}

__attribute__((used)) _Noreturn void start(long *stack) {
    int count = (int)stack[0];
    char **argv = (char **)(stack + 1), **environment = argv + count + 1;
    const unsigned long every = ~0ul;
    unsigned long before = 0;
    if (count < 3 || !same(argv[1], "--")) {
        say("usage: init -- PROGRAM [ARGUMENT ...]\n");
        leave(125);
    }
    call(__NR_rt_sigprocmask, SIG_SETMASK, &every, &before, 8);
    long program = call(__NR_clone, SIGCHLD, 0, 0, 0);
    if (program < 0) {
        say("init: cannot fork\n");
        leave(125);
    }
    if (program == 0) become(argv + 2, environment, &before);
    for (int number = 0; number < 3; number++) call(__NR_close, number, 0, 0, 0);
    for (;;) {
        long number = call(__NR_rt_sigtimedwait, &every, 0, 0, 8);
        if (number > 0 && number != SIGCHLD) call(__NR_kill, program, number, 0, 0);
        if (number != SIGCHLD) continue;
        for (;;) {
            int status = 0;
            long ended = call(__NR_wait4, -1, &status, WNOHANG, 0);
            if (ended <= 0) break;
            if (ended == program) leave(status & 0x7f ? 128 + (status & 0x7f) : (status >> 8) & 0xff);
        }
    }
}
