/* floor: what the kernel alone charges for one isolated process, so that a run can be told as a multiple of it.
 *
 *   cc -O2 -o floor floor.c && ./floor N ROOTFS WORKDIR [mounts] [net] [bridge=NAME] [cgroup] [gap=MS]
 *
 * N times, one after the other: make upper and work directories, clone (VM|VFORK and new mount, pid, uts, ipc
 * namespaces) a child that mounts overlay over ROOTFS, pivots into it and execs /bin/true; wait for it.
 *   mounts       also /proc, a /dev with six nodes, devpts, shm, mqueue, the read-only and masked paths
 *   net          also a new network namespace
 *   bridge=NAME  also a veth pair made in one go, one end on bridge NAME, the other in the namespace, with
 *                address and default route (implies net). Make the bridge first: ip link add NAME type bridge
 *   cgroup       also a cgroup for it, in every v1 controller mounted under /sys/fs/cgroup (the child joins by itself
 *                through tasks), or in the v2 tree (joined by the parent through cgroup.procs; clone3 would be quicker)
 *   raw          print every time in ms instead of the summary
 *   gap=MS       sleep so long before each, as an idle host would; the sleep is not timed
 * The overlay is volatile. Nothing else is done: no image, log, policy, capability or seccomp work. Prints min, p50, p90, p99 in ms.
 * The removal of directories and cgroups is not timed. Needs root; ROOTFS needs /bin/true, /proc, /dev, /sys.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <arpa/inet.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) do { if ((x) < 0) { perror(#x); _exit(99); } } while (0)

static int want_mounts, want_raw, want_net, want_cgroup, bridge_index, netns = -1;
static char merged[512], overlay_options[2048], stack[256 * 1024] __attribute__((aligned(16)));
static const char *controllers[16];
static int n_controllers, tasks[16], joins_itself;

static double now_ms(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e3 + t.tv_nsec / 1e6; }
static int by_value(const void *a, const void *b) { double d = *(double *)a - *(double *)b; return d < 0 ? -1 : d > 0; }

/* netlink: one request, acknowledged */
struct request { struct nlmsghdr h; char body[1024]; };
static void *put(struct request *r, const void *data, size_t n) {
    void *at = (char *)r + NLMSG_ALIGN(r->h.nlmsg_len);
    memset(at, 0, NLMSG_ALIGN(n)); if (data) memcpy(at, data, n);
    r->h.nlmsg_len = NLMSG_ALIGN(r->h.nlmsg_len) + NLMSG_ALIGN(n); return at;
}
static struct rtattr *attr(struct request *r, int type, const void *data, size_t n) {
    struct rtattr a = {.rta_len = RTA_LENGTH(n), .rta_type = type}; struct rtattr *at = put(r, &a, sizeof a); if (n) put(r, data, n); return at;
}
static void end(struct request *r, struct rtattr *a) { a->rta_len = (char *)r + r->h.nlmsg_len - (char *)a; }
static void start(struct request *r, int type, int flags) { memset(r, 0, sizeof *r); r->h.nlmsg_len = NLMSG_LENGTH(0); r->h.nlmsg_type = type; r->h.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags; }
static void ask(int s, struct request *r) {
    char back[4096]; CHECK(send(s, r, r->h.nlmsg_len, 0)); CHECK(recv(s, back, sizeof back, 0));
    struct nlmsgerr *e = NLMSG_DATA((struct nlmsghdr *)back); if (e->error) { errno = -e->error; perror("netlink"); _exit(99); }
}
static void make_net(int host_ns, int host_socket, int i) {
    CHECK(unshare(CLONE_NEWNET)); CHECK(netns = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    int inside = -1; if (bridge_index) CHECK(inside = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    CHECK(setns(host_ns, CLONE_NEWNET)); if (!bridge_index) return;
    struct request r; char name[16]; int peer_index = 2; struct ifinfomsg up = {.ifi_flags = IFF_UP, .ifi_change = IFF_UP}, in = {.ifi_index = peer_index};
    start(&r, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL); put(&r, &up, sizeof up);
    snprintf(name, sizeof name, "fl%x.%x", getpid(), i); attr(&r, IFLA_IFNAME, name, strlen(name) + 1); attr(&r, IFLA_MASTER, &bridge_index, 4);
    struct rtattr *info = attr(&r, IFLA_LINKINFO, 0, 0); attr(&r, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attr(&r, IFLA_INFO_DATA, 0, 0), *peer = attr(&r, VETH_INFO_PEER, 0, 0);
    put(&r, &in, sizeof in); attr(&r, IFLA_IFNAME, "eth0", 5); attr(&r, IFLA_NET_NS_FD, &netns, 4);
    end(&r, peer); end(&r, data); end(&r, info); ask(host_socket, &r);
    for (int index = 1; index <= peer_index; index++) { start(&r, RTM_NEWLINK, 0); up.ifi_index = index; put(&r, &up, sizeof up); ask(inside, &r); }
    struct ifaddrmsg am = {.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = peer_index}; unsigned a = htonl(0x0ac80002 + (getpid() % 100 * 600 + i) % 60000), gw = htonl(0x0ac80001);
    start(&r, RTM_NEWADDR, NLM_F_CREATE); put(&r, &am, sizeof am); attr(&r, IFA_LOCAL, &a, 4); attr(&r, IFA_ADDRESS, &a, 4); ask(inside, &r);
    struct rtmsg rm = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT, .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST};
    start(&r, RTM_NEWROUTE, NLM_F_CREATE); put(&r, &rm, sizeof rm); attr(&r, RTA_GATEWAY, &gw, 4); ask(inside, &r); close(inside);
}

static int child(void *unused) {
    (void)unused;
    if (joins_itself) for (int k = 0; k < n_controllers; k++) CHECK(write(tasks[k], "0", 1));
    if (netns >= 0) CHECK(setns(netns, CLONE_NEWNET));
    CHECK(mount(0, "/", 0, MS_REC | MS_PRIVATE, 0)); CHECK(mount("overlay", merged, "overlay", 0, overlay_options)); CHECK(chdir(merged));
    if (want_mounts) {
        static const struct { const char *path; int major, minor; } nodes[] = {{"dev/null", 1, 3}, {"dev/zero", 1, 5}, {"dev/full", 1, 7}, {"dev/random", 1, 8}, {"dev/urandom", 1, 9}, {"dev/tty", 5, 0}};
        static const char *const fixed[] = {"proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"}, *const masked[] = {"proc/kcore", "proc/keys", "proc/timer_list"}, *const hidden[] = {"proc/acpi", "proc/scsi", "sys/firmware"};
        CHECK(mount("proc", "proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, 0)); CHECK(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=65536k"));
        umask(0); for (int i = 0; i < 6; i++) CHECK(mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)));
        mkdir("dev/pts", 0755); mkdir("dev/shm", 01777); mkdir("dev/mqueue", 0755);
        CHECK(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
        CHECK(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777,size=65536k"));
        CHECK(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0));
        if (want_net) CHECK(mount("sysfs", "sys", "sysfs", MS_RDONLY | MS_NOSUID | MS_NOEXEC | MS_NODEV, 0));
        CHECK(symlink("pts/ptmx", "dev/ptmx")); CHECK(symlink("/proc/self/fd", "dev/fd"));
        for (int i = 0; i < 5; i++) if (mount(fixed[i], fixed[i], 0, MS_BIND | MS_REC, 0) == 0) mount(0, fixed[i], 0, MS_BIND | MS_REMOUNT | MS_RDONLY, 0);
        for (int i = 0; i < 3; i++) { mount("/dev/null", masked[i], 0, MS_BIND, 0); mount("tmpfs", hidden[i], "tmpfs", MS_RDONLY, 0); }
        sethostname("floor", 5);
    }
    CHECK(syscall(SYS_pivot_root, ".", ".")); CHECK(umount2(".", MNT_DETACH)); CHECK(chdir("/"));
    char *argv[] = {"/bin/true", 0}; execve(argv[0], argv, argv + 1); perror("exec"); _exit(99);
}

/* a new v1 cpuset is empty: nothing may join it until it is given its parent's value */
static void copy_down(const char *file, const char *group) {
    char path[700], value[256]; snprintf(path, sizeof path, "/sys/fs/cgroup/cpuset/%s", file); int f = open(path, O_RDONLY), n = f < 0 ? 0 : read(f, value, sizeof value); close(f);
    snprintf(path, sizeof path, "%s/%s", group, file); f = open(path, O_WRONLY); if (n > 0 && write(f, value, n) < 0) perror(path); close(f);
}

int main(int argc, char **argv) {
    if (argc < 4) { fprintf(stderr, "usage: floor N ROOTFS WORKDIR [mounts] [net] [bridge=NAME] [cgroup]\n"); return 2; }
    int n = atoi(argv[1]), gap_ms = 0; double *took = calloc(n, sizeof *took); char path[600], base[300];
    for (int i = 4; i < argc; i++) {
        if (!strcmp(argv[i], "mounts")) want_mounts = 1; else if (!strcmp(argv[i], "raw")) want_raw = 1; else if (!strcmp(argv[i], "net")) want_net = 1; else if (!strcmp(argv[i], "cgroup")) want_cgroup = 1;
        else if (!strncmp(argv[i], "gap=", 4)) gap_ms = atoi(argv[i] + 4);
        else if (!strncmp(argv[i], "bridge=", 7)) { want_net = 1; if (!(bridge_index = if_nametoindex(argv[i] + 7))) { perror(argv[i]); return 2; } } else { fprintf(stderr, "floor: %s?\n", argv[i]); return 2; }
    }
    if (want_cgroup) {
        static const char *const v1[] = {"cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "freezer", "blkio"};
        if (access("/sys/fs/cgroup/cgroup.procs", F_OK) == 0) controllers[n_controllers++] = ".";
        else for (int i = 0; i < 8; i++) { snprintf(path, sizeof path, "/sys/fs/cgroup/%s/cgroup.procs", v1[i]); if (access(path, F_OK) == 0) controllers[n_controllers++] = v1[i]; }
        joins_itself = strcmp(controllers[0], ".") != 0;
    }
    int host_ns, host_socket; CHECK(host_ns = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)); CHECK(host_socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
    for (int i = 0; i < n; i++) {
        if (gap_ms) usleep(gap_ms * 1000);
        double t0 = now_ms();
        snprintf(base, sizeof base, "%s/%d-%d", argv[3], getpid(), i); CHECK(mkdir(base, 0755));
        for (const char *d = "umw"; *d; d++) { snprintf(path, sizeof path, "%s/%c", base, *d); CHECK(mkdir(path, 0755)); }
        snprintf(merged, sizeof merged, "%s/m", base); snprintf(overlay_options, sizeof overlay_options, "lowerdir=%s,upperdir=%s/u,workdir=%s/w,volatile", argv[2], base, base);
        if (want_net) make_net(host_ns, host_socket, i);
        for (int k = 0; k < n_controllers; k++) { snprintf(path, sizeof path, "/sys/fs/cgroup/%s/floor%d-%d", controllers[k], getpid(), i); CHECK(mkdir(path, 0755));
            if (!strcmp(controllers[k], "cpuset")) { copy_down("cpuset.cpus", path); copy_down("cpuset.mems", path); }
            if (joins_itself) { strcat(path, "/tasks"); CHECK(tasks[k] = open(path, O_WRONLY | O_CLOEXEC)); } }
        int pid = clone(child, stack + sizeof stack, CLONE_VM | CLONE_VFORK | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | SIGCHLD, 0); CHECK(pid);
        for (int k = 0; k < n_controllers; k++) {
            if (joins_itself) { close(tasks[k]); continue; }
            snprintf(path, sizeof path, "/sys/fs/cgroup/%s/floor%d-%d/cgroup.procs", controllers[k], getpid(), i); int f = open(path, O_WRONLY); dprintf(f, "%d", pid); close(f);
        }
        int status; CHECK(waitpid(pid, &status, 0)); if (status) { fprintf(stderr, "floor: child status %d\n", status); return 1; }
        if (netns >= 0) { close(netns); netns = -1; }
        took[i] = now_ms() - t0;
        for (int k = 0; k < n_controllers; k++) { snprintf(path, sizeof path, "/sys/fs/cgroup/%s/floor%d-%d", controllers[k], getpid(), i); rmdir(path); }
        snprintf(path, sizeof path, "%s/w/work", base); rmdir(path); for (const char *d = "umw"; *d; d++) { snprintf(path, sizeof path, "%s/%c", base, *d); rmdir(path); } rmdir(base);
    }
    if (want_raw) { for (int i = 0; i < n; i++) printf("%.4f\n", took[i]); return 0; }
    qsort(took, n, sizeof *took, by_value);
    printf("floor%s%s%s%s: n %d  min %.2f  p50 %.2f  p90 %.2f  p99 %.2f ms\n", want_mounts ? " mounts" : "", bridge_index ? " bridge" : want_net ? " net" : "", want_cgroup ? " cgroup" : "", "", n, took[0], took[n / 2], took[n * 9 / 10], took[n * 99 / 100]);
    return 0;
}
