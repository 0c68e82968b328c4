# cython: language_level=3, cdivision=True
"""A container's cable: one conversation with the kernel for a veth pair, addresses and routes.

A veth pair is made with its peer in the container's namespace and its host end on the bridge by one
message; moving a finished link there takes 16 ms (it waits for RCU), this 0.3. All messages of one
side go in one `send`; the kernel answers each. Everything is encoded on the stack, without the GIL.

Neighbour entries are permanent, both ways: nobody asks by ARP for an address that we gave, and such
entries do not count towards the host's neighbour limits (gc_thresh3, arp(7)).

Source: rtnetlink(7), netlink(7), veth(4).
"""

from libc.errno cimport EIO, EMSGSIZE, errno
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport abort
from libc.string cimport memcpy, memset

cdef extern from "<fcntl.h>" nogil:
    int openat(int directory, const char *path, int flags, ...)
    enum:
        AT_FDCWD
        O_CLOEXEC
        O_RDONLY

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<sched.h>" nogil:
    int setns(int fd, int kind)
    enum:
        CLONE_NEWNET

cdef extern from "<sys/socket.h>" nogil:
    int socket(int family, int kind, int protocol)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    enum:
        AF_BRIDGE
        AF_INET
        AF_INET6
        AF_NETLINK
        SOCK_CLOEXEC
        SOCK_RAW

cdef extern from "<net/if.h>" nogil:
    enum:
        IFF_NOARP
        IFF_UP

cdef extern from "<linux/rtnetlink.h>" nogil:
    cdef struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
        uint32_t nlmsg_pid
    cdef struct nlmsgerr:
        int error
        nlmsghdr msg
    cdef struct ifinfomsg:
        uint8_t ifi_family
        int ifi_index
        unsigned int ifi_flags
        unsigned int ifi_change
    cdef struct ifaddrmsg:
        uint8_t ifa_family
        uint8_t ifa_prefixlen
        uint8_t ifa_flags
        uint8_t ifa_scope
        uint32_t ifa_index
    cdef struct rtmsg:
        uint8_t rtm_family
        uint8_t rtm_dst_len
        uint8_t rtm_table
        uint8_t rtm_protocol
        uint8_t rtm_scope
        uint8_t rtm_type
    enum:
        NETLINK_ROUTE
        NLMSG_ERROR
        NLM_F_ACK
        NLM_F_CREATE
        NLM_F_EXCL
        NLM_F_REPLACE
        NLM_F_REQUEST
        RTM_DELLINK
        RTM_DELNEIGH
        RTM_NEWADDR
        RTM_NEWLINK
        RTM_NEWNEIGH
        RTM_NEWROUTE
        RTN_UNICAST
        RTPROT_BOOT
        RT_SCOPE_UNIVERSE
        RT_TABLE_MAIN
        RTA_GATEWAY
        RTA_METRICS
        RTA_OIF
        RTAX_MTU

cdef extern from "<linux/neighbour.h>" nogil:
    cdef struct ndmsg:
        uint8_t ndm_family
        int32_t ndm_ifindex
        uint16_t ndm_state
        uint8_t ndm_flags
        uint8_t ndm_type
    enum:
        NDA_DST
        NDA_LLADDR
        NTF_MASTER
        NUD_NOARP
        NUD_PERMANENT

cdef extern from "<linux/if_addr.h>" nogil:
    enum:
        IFA_ADDRESS
        IFA_BROADCAST
        IFA_LOCAL
        IFA_F_NODAD

cdef extern from "<linux/if_link.h>" nogil:
    enum:
        IFLA_ADDRESS
        IFLA_AF_SPEC
        IFLA_BRPORT_LEARNING
        IFLA_BRPORT_MODE
        IFLA_IFNAME
        IFLA_INET6_ADDR_GEN_MODE
        IFLA_INFO_DATA
        IFLA_INFO_KIND
        IFLA_INFO_SLAVE_DATA
        IFLA_INFO_SLAVE_KIND
        IFLA_LINKINFO
        IFLA_MASTER
        IFLA_MTU
        IFLA_NET_NS_FD
        IN6_ADDR_GEN_MODE_NONE

cdef extern from "<linux/veth.h>" nogil:
    enum:
        VETH_INFO_PEER

DEF SIZE = 2048


cdef struct Talk:
    # What is to be sent to one namespace: messages one behind the other.
    char data[SIZE]
    size_t used
    size_t message  # where the one that is being written began
    uint32_t count
    bint full


cdef void *room(Talk *talk, size_t size) noexcept nogil:
    # That many bytes more, zeroed, at a multiple of four. A full buffer is noticed at the end.
    cdef size_t padded = (size + 3) & ~<size_t> 3
    cdef char *at = talk.data + talk.used
    if talk.used + padded > SIZE:
        talk.full = True
        at = talk.data
        padded = 0
        if size > SIZE:
            abort()
    memset(at, 0, size if padded == 0 else padded)
    talk.used += padded
    return at


cdef size_t put(Talk *talk, int kind, const void *data, size_t size) noexcept nogil:
    # One attribute; where it began, for `seal`.
    cdef size_t start = talk.used
    cdef uint16_t *head = <uint16_t *> room(talk, 4)
    head[0] = <uint16_t> (4 + size)
    head[1] = <uint16_t> kind
    if size:
        memcpy(room(talk, size), data, size)
    return start


cdef void seal(Talk *talk, size_t start) noexcept nogil:
    # The attribute at `start` holds all that was put since.
    (<uint16_t *> (talk.data + start))[0] = <uint16_t> (talk.used - start)


cdef void *begin(Talk *talk, int kind, int flags, size_t header) noexcept nogil:
    cdef nlmsghdr *head
    talk.message = talk.used
    head = <nlmsghdr *> room(talk, sizeof(nlmsghdr))
    talk.count += 1
    head.nlmsg_type = <uint16_t> kind
    head.nlmsg_flags = <uint16_t> (NLM_F_REQUEST | NLM_F_ACK | flags)
    head.nlmsg_seq = talk.count
    return room(talk, header)


cdef void finish(Talk *talk) noexcept nogil:
    (<nlmsghdr *> (talk.data + talk.message)).nlmsg_len = <uint32_t> (talk.used - talk.message)


cdef int ask(int fd, Talk *talk, uint32_t *failed) noexcept nogil:
    # Send everything and read every answer. The first error and the number, from 1, of its message.
    cdef char answer[4096]
    cdef nlmsghdr *head = <nlmsghdr *> answer
    cdef nlmsgerr *error = <nlmsgerr *> (answer + sizeof(nlmsghdr))
    cdef ssize_t size
    cdef uint32_t seen = 0
    cdef int first = 0
    failed[0] = 0
    if talk.full:
        return EMSGSIZE
    if send(fd, talk.data, talk.used, 0) < 0:
        return errno
    while seen < talk.count:
        size = recv(fd, answer, sizeof(answer), 0)
        if size < 0:
            return errno
        if size < <ssize_t> (sizeof(nlmsghdr) + 4) or head.nlmsg_type != NLMSG_ERROR:
            return EIO
        seen += 1
        if error.error != 0 and first == 0:
            first = -error.error
            failed[0] = head.nlmsg_seq
    return first


cdef void neighbour(
    Talk *talk, int kind, int flags, int link, const char *address, size_t size, const char *hardware
) noexcept nogil:
    # A permanent entry for an address of 4 or 16 bytes.
    cdef ndmsg *entry = <ndmsg *> begin(talk, kind, flags, sizeof(ndmsg))
    entry.ndm_family = <uint8_t> (AF_INET if size == 4 else AF_INET6)
    entry.ndm_ifindex = link
    entry.ndm_state = NUD_PERMANENT
    put(talk, NDA_DST, address, size)
    if hardware != NULL:
        put(talk, NDA_LLADDR, hardware, 6)
    finish(talk)


cdef void veth(
    Talk *talk, const char *name, size_t name_size, int number, int master, int namespace, int index,
    const char *inner_name, size_t inner_size, const char *hardware, uint32_t mtu,
) noexcept nogil:
    # The pair: our end on the bridge under its number, the other in the namespace under its own.
    cdef ifinfomsg *link = <ifinfomsg *> begin(
        talk, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, sizeof(ifinfomsg)
    )
    cdef size_t info
    cdef size_t data
    cdef size_t peer
    cdef ifinfomsg *inside
    link.ifi_index = number
    put(talk, IFLA_IFNAME, name, name_size + 1)
    put(talk, IFLA_MASTER, &master, 4)
    if mtu:
        put(talk, IFLA_MTU, &mtu, 4)
    info = put(talk, IFLA_LINKINFO, NULL, 0)
    put(talk, IFLA_INFO_KIND, b"veth", 4)
    data = put(talk, IFLA_INFO_DATA, NULL, 0)
    peer = put(talk, VETH_INFO_PEER, NULL, 0)
    inside = <ifinfomsg *> room(talk, sizeof(ifinfomsg))
    inside.ifi_index = index
    put(talk, IFLA_IFNAME, inner_name, inner_size + 1)
    put(talk, IFLA_ADDRESS, hardware, 6)
    put(talk, IFLA_NET_NS_FD, &namespace, 4)
    if mtu:
        put(talk, IFLA_MTU, &mtu, 4)
    seal(talk, peer)
    seal(talk, data)
    seal(talk, info)
    finish(talk)


cdef ifinfomsg *change(Talk *talk, int index) noexcept nogil:
    # A message about a link that is there.
    cdef ifinfomsg *link = <ifinfomsg *> begin(talk, RTM_NEWLINK, 0, sizeof(ifinfomsg))
    link.ifi_index = index
    return link


cdef void port(Talk *talk, bint reflect) noexcept nogil:
    # Attributes of a link on a bridge: the bridge learns nothing from what comes from it; `reflect`: a
    # frame may go back over it. Only a link that is there can be told so.
    cdef uint8_t on = 1
    cdef uint8_t off = 0
    cdef size_t info = put(talk, IFLA_LINKINFO, NULL, 0)
    cdef size_t data
    put(talk, IFLA_INFO_SLAVE_KIND, b"bridge", 7)
    data = put(talk, IFLA_INFO_SLAVE_DATA, NULL, 0)
    put(talk, IFLA_BRPORT_LEARNING, &off, 1)
    if reflect:
        put(talk, IFLA_BRPORT_MODE, &on, 1)
    seal(talk, data)
    seal(talk, info)


cdef void without_link_local(Talk *talk) noexcept nogil:
    # Attributes of a link: no fe80:: address when it comes up. Nobody speaks IPv6 there, and nothing is
    # announced.
    cdef uint8_t mode = IN6_ADDR_GEN_MODE_NONE
    cdef size_t spec = put(talk, IFLA_AF_SPEC, NULL, 0)
    cdef size_t version = put(talk, AF_INET6, NULL, 0)
    put(talk, IFLA_INET6_ADDR_GEN_MODE, &mode, 1)
    seal(talk, version)
    seal(talk, spec)


cdef void found_at(Talk *talk, int index, const char *hardware) noexcept nogil:
    # The bridge sends what is for that hardware address to that port of it, and so for ever.
    cdef ndmsg *entry = <ndmsg *> begin(
        talk, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, sizeof(ndmsg)
    )
    entry.ndm_family = AF_BRIDGE
    entry.ndm_ifindex = index
    entry.ndm_state = NUD_NOARP
    entry.ndm_flags = NTF_MASTER
    put(talk, NDA_LLADDR, hardware, 6)
    finish(talk)


cdef void up(Talk *talk, int index, unsigned int more) noexcept nogil:
    # With `more` flags.
    cdef ifinfomsg *link = change(talk, index)
    link.ifi_flags = IFF_UP | more
    link.ifi_change = IFF_UP | more
    finish(talk)


cdef void addressed(Talk *talk, int index, const char *address, size_t size, int prefix) noexcept nogil:
    cdef ifaddrmsg *given = <ifaddrmsg *> begin(
        talk, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, sizeof(ifaddrmsg)
    )
    cdef uint32_t mask
    cdef char broadcast[4]
    cdef int i
    given.ifa_family = <uint8_t> (AF_INET if size == 4 else AF_INET6)
    given.ifa_prefixlen = <uint8_t> prefix
    given.ifa_index = index
    put(talk, IFA_LOCAL, address, size)
    put(talk, IFA_ADDRESS, address, size)
    if size == 4 and prefix < 31:
        mask = <uint32_t> ((<long> 1 << (32 - prefix)) - 1)
        for i in range(4):
            broadcast[i] = <char> (address[i] | ((mask >> (8 * (3 - i))) & 0xFF))
        put(talk, IFA_BROADCAST, broadcast, 4)
    if size == 16:
        given.ifa_flags = IFA_F_NODAD  # we gave it, so it is nobody else's
    finish(talk)


cdef void routed(
    Talk *talk, int index, const char *gateway, size_t size, uint32_t mtu
) noexcept nogil:
    # The way to everywhere else; `mtu`: its largest packet, 0: the link's own.
    cdef size_t metrics
    cdef rtmsg *route = <rtmsg *> begin(
        talk, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, sizeof(rtmsg)
    )
    route.rtm_family = <uint8_t> (AF_INET if size == 4 else AF_INET6)
    route.rtm_table = RT_TABLE_MAIN
    route.rtm_protocol = RTPROT_BOOT
    route.rtm_scope = RT_SCOPE_UNIVERSE
    route.rtm_type = RTN_UNICAST
    put(talk, RTA_GATEWAY, gateway, size)
    put(talk, RTA_OIF, &index, 4)
    if mtu:
        metrics = put(talk, RTA_METRICS, NULL, 0)
        put(talk, RTAX_MTU, &mtu, 4)
        seal(talk, metrics)
    finish(talk)


cdef int socket_in(int namespace) noexcept nogil:
    # A socket of another namespace, or minus errno: this thread visits it and comes back.
    cdef int home = openat(AT_FDCWD, b"/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)
    cdef int made
    if home < 0:
        return -errno
    if setns(namespace, CLONE_NEWNET) < 0:
        made = -errno
    else:
        made = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)
        if made < 0:
            made = -errno
        if setns(home, CLONE_NEWNET) < 0:
            abort()  # a thread in a container's network must not go on
    close(home)
    return made


cdef int check_sizes(bytes hardware, bytes address, bytes gateway, bytes gateway_hardware) except -1:
    if len(hardware) != 6 or len(gateway_hardware) != 6:
        raise ValueError("a hardware address has 6 bytes")
    if len(address) not in (4, 16) or len(gateway) != len(address):
        raise ValueError("an address has 4 or 16 bytes, and the gateway as many")
    return 0


def try_cable(
    int host, int namespace, bytes name not None, int number, int master, int index,
    bytes inner_name not None, bytes hardware not None, bytes gateway_hardware not None,
    list addresses not None, bint default_route, unsigned int mtu, unsigned int route_mtu,
    bint reflect,
):
    """Lay a cable: (0, 0), or (number of the refused message from 1, errno).

    `host` is a rtnetlink socket of the bridge's namespace, `master` the bridge's number, `number` and
    `index` those which the link's ends get outside and inside: EEXIST for message 1 where another link
    has one of them. `addresses`: (address, prefix length, gateway), one of each version at most. `mtu`
    is the link's largest packet and `route_mtu` the default route's, 0 for the kernel's own choice.
    `reflect`: the bridge may send frames back where they came from. Messages 1 to 9 are the host's,
    from 11 on the container's. After a failure the host end may be there: `try_remove_link`.
    """
    cdef Talk outside
    cdef Talk inside
    cdef uint32_t failed = 0
    cdef int err = 0
    cdef int fd
    cdef bytes address
    cdef bytes gateway
    cdef bint version6 = False
    if not (0 < len(name) < 16 and 0 < len(inner_name) < 16):
        raise ValueError("a link's name has 1 to 15 bytes")
    memset(&outside, 0, sizeof(Talk))
    memset(&inside, 0, sizeof(Talk))
    veth(
        &outside, name, len(name), number, master, namespace, index, inner_name, len(inner_name),
        hardware, mtu,
    )
    change(&outside, number)
    port(&outside, reflect)
    # A port of a bridge needs no address, and what it announces arrives in the container.
    without_link_local(&outside)
    finish(&outside)
    found_at(&outside, number, hardware)
    # What the container sends to a group of the bridge's own (01:80:c2:00:00:0e) the host gets there,
    # asked by no rule of the bridge: it learns no neighbours from that.
    up(&outside, number, IFF_NOARP)
    for address, prefix, gateway in addresses:
        check_sizes(hardware, address, gateway, gateway_hardware)
        version6 = version6 or len(address) == 16
        neighbour(
            &outside, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, master, address, len(address), hardware
        )
    if not version6:
        change(&inside, index)
        without_link_local(&inside)
        finish(&inside)
    up(&inside, index, 0)
    for address, prefix, gateway in addresses:
        addressed(&inside, index, address, len(address), prefix)
        if default_route:
            routed(&inside, index, gateway, len(gateway), route_mtu)
        neighbour(
            &inside, RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, index, gateway, len(gateway),
            gateway_hardware,
        )
    with nogil:
        err = ask(host, &outside, &failed)
        if err == 0:
            fd = socket_in(namespace)
            if fd < 0:
                err = -fd
            else:
                err = ask(fd, &inside, &failed)
                close(fd)
            if err:
                failed += 10
    return failed, err


def try_forget_neighbours(int host, int master, list addresses not None):
    """Remove the host's entries for those addresses on the bridge; errno of the first refusal."""
    cdef Talk talk
    cdef uint32_t failed = 0
    cdef int err
    cdef bytes address
    memset(&talk, 0, sizeof(Talk))
    for address in addresses:
        neighbour(&talk, RTM_DELNEIGH, 0, master, address, len(address), NULL)
    with nogil:
        err = ask(host, &talk, &failed)
    return err


def try_remove_link(int host, bytes name not None):
    """Remove a link by name; errno. Waits for RCU, 17 ms: let a namespace's end do it instead."""
    cdef Talk talk
    cdef uint32_t failed = 0
    cdef int err
    memset(&talk, 0, sizeof(Talk))
    begin(&talk, RTM_DELLINK, 0, sizeof(ifinfomsg))
    put(&talk, IFLA_IFNAME, <const char *> name, len(name) + 1)
    finish(&talk)
    with nogil:
        err = ask(host, &talk, &failed)
    return err
