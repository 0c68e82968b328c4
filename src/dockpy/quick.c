/* The client's plain way, without an interpreter: a request to a daemon that is there, and what it answers.
 *
 * Starting Python takes longer than starting a container. So the request goes out from here, and here the exit code
 * comes in. Whatever is out of the ordinary (no daemon, a terminal to be read or made raw, a daemon that dies) is
 * handed to api/client.py, before the request or in the middle of the conversation: that is the client, this is only
 * its shortest path. The messages are those of api/wire.py, signals are treated as there.
 */
#define _GNU_SOURCE
#include "quick.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 17, PACKET_LIMIT = 60000, RUN = 1, TERMINAL = 1, TRACED = 8 };
enum { INSISTENT = 3, INSISTING_MS = 500 };
static const int relayed[] = {1, 2, 3, 10, 12, 14, 15, 16, 18, 24, 25, 26, 27, 28, 29, 30};

static int connection = -1;
static volatile sig_atomic_t followed; /* the daemon told how to go on: signals are the container's */
static volatile sig_atomic_t insisted;
static struct timespec first;

/* -- signals ------------------------------------------------------------------------------------------------------ */

static void on_signal(int number) {
    int before = errno;
    char byte = (char)number;
    send(connection, &byte, 1, MSG_NOSIGNAL);
    if (!followed && (number == SIGHUP || number == SIGINT || number == SIGQUIT || number == SIGTERM)) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (insisted++ == 0) first = now;
        long ms = (now.tv_sec - first.tv_sec) * 1000 + (now.tv_nsec - first.tv_nsec) / 1000000;
        if (insisted >= INSISTENT && ms > INSISTING_MS) _exit(128 + number);
    }
    errno = before;
}

static void all_relayed(sigset_t *set) {
    sigemptyset(set);
    for (size_t i = 0; i < sizeof relayed / sizeof *relayed; i++) sigaddset(set, relayed[i]);
    for (int number = SIGRTMIN; number <= SIGRTMAX; number++) sigaddset(set, number);
}

static void relay(void) {
    struct sigaction ours = {.sa_handler = on_signal}, there;
    all_relayed(&ours.sa_mask);
    for (int number = 1; number <= SIGRTMAX; number++)
        if (sigismember(&ours.sa_mask, number) == 1 && sigaction(number, NULL, &there) == 0 &&
            there.sa_handler != SIG_IGN)
            sigaction(number, &ours, NULL);
}

/* -- the request -------------------------------------------------------------------------------------------------- */

static const char *chosen_root, *chosen_run;

/* Where the daemon is, without more than looking: options before the verb, or DOCKPY_ROOT and DOCKPY_RUN.
 * Gives the number of words that were options; -1: for the other client to find out. */
static int find_engine(int count, char **words) {
    int at = 0;
    chosen_root = chosen_run = NULL;
    for (; at < count; at++) {
        const char **which, *value;
        if (strncmp(words[at], "--root", 6) == 0) {
            which = &chosen_root, value = words[at] + 6;
        } else if (strncmp(words[at], "--run", 5) == 0) {
            which = &chosen_run, value = words[at] + 5;
        } else {
            break;
        }
        if (*value == '=') {
            value++;
        } else if (*value != 0) {
            break; /* another option */
        } else if (++at < count) {
            value = words[at];
        } else {
            return -1;
        }
        *which = value;
    }
    if (chosen_root == NULL) {
        chosen_root = getenv("DOCKPY_ROOT");
        if (chosen_run == NULL) chosen_run = getenv("DOCKPY_RUN");
    }
    if (chosen_root == NULL || *chosen_root == 0) {
        chosen_root = "/var/lib/dockpy";
        if (chosen_run == NULL || *chosen_run == 0) chosen_run = "/run/dockpy";
    }
    if (chosen_run == NULL || *chosen_root != '/' || *chosen_run != '/') return -1;
    if (strstr(chosen_run, "/.") || strstr(chosen_root, "/.")) return -1;
    return at;
}

static int reach(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int size = snprintf(address.sun_path, sizeof address.sun_path, "%s/dockpy.sock", chosen_run);
    if (size < 0 || (size_t)size >= sizeof address.sun_path) return -1;
    int made = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (made >= 0 && connect(made, (struct sockaddr *)&address, sizeof address) < 0) {
        close(made);
        return -1;
    }
    return made;
}

static size_t add(char *packet, size_t used, const char *word) {
    size_t size = strlen(word) + 1;
    if (used > PACKET_LIMIT || size > PACKET_LIMIT - used) return PACKET_LIMIT + 1;
    memcpy(packet + used, word, size);
    return used + size;
}

static void put32(char *at, uint32_t value) {
    for (int i = 0; i < 4; i++) at[i] = (char)(value >> (8 * i));
}

/* The whole request as one packet; 0 when it does not fit. */
static size_t pack(char *packet, int count, char **words, int flags) {
    size_t used = HEADER;
    uint32_t variables = 0;
    memcpy(packet, "dockpy\1", 7);
    packet[7] = RUN;
    packet[8] = (char)flags;
    for (int i = 0; i < count; i++) used = add(packet, used, words[i]);
    for (char **one = environ; *one != NULL; one++) {
        if (strchr(*one, '=') == NULL) continue;
        used = add(packet, used, *one);
        variables++;
    }
    put32(packet + 9, (uint32_t)count);
    put32(packet + 13, variables);
    return used > PACKET_LIMIT ? 0 : used;
}

static int send_request(const char *packet, size_t size, const int *descriptors, size_t count) {
    union {
        char bytes[CMSG_SPACE(5 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec data = {.iov_base = (void *)packet, .iov_len = size};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes};
    memset(&control, 0, sizeof control);
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(head), descriptors, count * sizeof(int));
    return sendmsg(connection, &message, MSG_NOSIGNAL) < 0 ? -1 : 0;
}

/* -- handing over ------------------------------------------------------------------------------------------------- */

static void keep_open(int fd) {
    if (fd >= 0) fcntl(fd, F_SETFD, 0);
}

static int write_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t done = write(fd, data, size);
        if (done < 0) return -1;
        data += done, size -= (size_t)done;
    }
    return 0;
}

/* A descriptor with all that api/client.py needs to go on: see `Client.took_over` there. */
static int state(int keys, int closing, const char *packet, size_t size, const char *follow, size_t follow_size) {
    char head[2 * PATH_MAX + 128];
    int fd = memfd_create("dockpy-client", 0);
    int used = snprintf(head, sizeof head, "%s%c%s%c%d%c%d%c%d%c%zu%c", chosen_root, 0, chosen_run, 0, connection, 0,
                        keys, 0, closing, 0, size, 0);
    if (fd < 0 || used < 0 || (size_t)used >= sizeof head) return -1;
    if (write_all(fd, head, (size_t)used) || write_all(fd, packet, size) || write_all(fd, follow, follow_size))
        return -1;
    keep_open(connection);
    keep_open(keys);
    return fd;
}

/* The timeline of this command, with its last line: that we know. See api/client.py. */
static void show_trace(const char *told) {
    struct timespec clock;
    char line[80], *rest;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    long long now = (long long)clock.tv_sec * 1000000000 + clock.tv_nsec;
    long long begin = strtoll(told, &rest, 10), end = strtoll(rest, &rest, 10);
    if (*rest != '\n') return;
    int size = snprintf(line, sizeof line, "%8.3f %7.3f  %-10s  %s\n", (double)(now - begin) / 1e6,
                        (double)(now - end) / 1e6, "client", "has the answer");
    if (write_all(2, rest + 1, strlen(rest + 1)) == 0) write_all(2, line, (size_t)size);
}

static int is_daemon(const char *word) {
    static const char *const known[] = {"daemon", "-d", "-d=true", "--daemon", "-daemon"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(word, known[i]) == 0) return 1;
    return 0;
}

int quick(int argc, char **argv) {
    static char packet[PACKET_LIMIT + 1], follow[PACKET_LIMIT + 1];
    size_t follow_size = 0;
    int closing = 0, keys[2] = {0, -1};
    int options = find_engine(argc - 1, argv + 1);
    if (options < 0) return QUICK_NOT;
    int count = argc - 1 - options;
    char **words = argv + 1 + options;
    if (count > 0 && is_daemon(words[0])) return QUICK_NOT;
    int null;
    while ((null = open("/dev/null", O_RDWR)) >= 0 && null <= 2) continue;
    if (null > 2) close(null);
    int terminal = isatty(0);
    int traced = getenv("DOCKPY_TRACE_BEGAN") != NULL ? TRACED : 0; /* launcher.c */
    size_t size = pack(packet, count, words, (terminal ? TERMINAL : 0) | traced);
    if (size == 0 || (connection = reach()) < 0) return QUICK_NOT;
    int here = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (here < 0 || (terminal && pipe2(keys, O_CLOEXEC) < 0)) {
        close(connection);
        return QUICK_NOT;
    }
    if (terminal) fcntl(keys[1], F_SETFL, O_NONBLOCK);
    int descriptors[] = {keys[0], 1, 2, here, 0};
    sigset_t blocked, before;
    all_relayed(&blocked);
    /* The request goes first, and a signal that comes just after it is not lost. */
    sigprocmask(SIG_BLOCK, &blocked, &before);
    int sent = send_request(packet, size, descriptors, terminal ? 5 : 4);
    if (sent < 0 && errno != EPIPE && errno != ECONNRESET) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        close(connection);
        if (terminal) close(keys[0]), close(keys[1]);
        return QUICK_NOT;
    }
    struct timeval patience = {.tv_usec = 200000};
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    relay();
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(here);
    if (terminal) close(keys[0]);
    int failures = 0;
    for (;;) {
        ssize_t got = recv(connection, packet, PACKET_LIMIT, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && ++failures < 2) continue; /* signals that it read no more; what it said is still there */
        size_t rest = got > 0 ? (size_t)got - 1 : 0;
        if (got > 0 && packet[0] == 'x') _exit(rest ? (unsigned char)packet[1] : 125);
        if (got > 0 && packet[0] == 's') {
            write_all(2, packet + 1, rest);
        } else if (got > 0 && packet[0] == 'f') {
            memcpy(follow, packet + 1, follow_size = rest);
            followed = 1;
        } else if (got > 0 && packet[0] == 'q') {
            closing = 1;
        } else if (got > 0 && packet[0] == 't') {
            packet[got] = 0;
            show_trace(packet + 1);
        } else { /* a terminal's matter, or the daemon is gone */
            sigprocmask(SIG_BLOCK, &blocked, NULL);
            if (got <= 0) close(connection), connection = -1;
            return state(keys[1], closing, packet, got > 0 ? (size_t)got : 0, follow, follow_size);
        }
    }
}
