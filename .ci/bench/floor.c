/* The floor: what the kernel alone asks for one event to N open connections.
 *
 * One thread, one epoll set, one shared buffer, one send() for each client. It answers
 * every request with the head of an event stream and knows nothing else of HTTP: no
 * framing, no history, no limits. A server that does its job cannot be cheaper.
 *
 * Controlled as every contestant is (see contestants.py): it says "ready PORT", obeys
 * "publish FIRST COUNT BATCH INTERVAL_US SIZE CHANNEL" lines, and says "done -".
 */
#include "shared.h"
#include <poll.h>

enum { MAX_FD = 1 << 20, READY = 512 };

static const char HEAD[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           "Cache-Control: no-cache\r\nConnection: close\r\n\r\n";

static int clients[MAX_FD]; /* descriptors of the open streams */
static int place[MAX_FD];   /* descriptor -> its index in clients, plus one */
static int client_count;

/* What is being published: `next` is the next event's number, `due` when it goes out. */
static struct { uint64_t next, end, batch, interval_ns, size, due; } job;

static void watch(int epoll, int fd)
{
    struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
}

static void drop(int fd)
{
    if (place[fd]) {
        int index = place[fd] - 1, last = clients[--client_count];
        clients[index] = last;
        place[last] = index + 1;
        place[fd] = 0;
    }
    close(fd);
}

/* A full socket buffer is waited for: the floor never loses and never queues. */
static void send_all(int fd, const char *data, size_t left)
{
    while (left) {
        ssize_t n = send(fd, data, left, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno != EAGAIN) return; /* gone: epoll reports it */
        if (n > 0) { data += n; left -= n; }
        if (left) poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, 1000);
    }
}

static void accept_all(int epoll, int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) { close(fd); continue; }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(epoll, fd);
    }
}

static void hear(int fd)
{
    char request[4096];
    ssize_t n = recv(fd, request, sizeof request, 0);
    if (n <= 0) { drop(fd); return; }
    if (place[fd]) return;
    send_all(fd, HEAD, sizeof HEAD - 1);
    clients[client_count++] = fd;
    place[fd] = client_count;
}

static void obey(void)
{
    char line[256];
    ssize_t n = read(0, line, sizeof line - 1);
    if (n <= 0) exit(0);
    line[n] = 0;
    uint64_t first, count, interval_us;
    if (sscanf(line, "publish %lu %lu %lu %lu %lu", &first, &count, &job.batch,
               &interval_us, &job.size) != 5) {
        fprintf(stderr, "unknown command: %s", line);
        exit(1);
    }
    job.next = first;
    job.end = first + count;
    job.interval_ns = interval_us * 1000;
    job.due = now_ns();
}

static void sweep(void)
{
    static char *buffer, *pad;
    static size_t room;
    size_t used = 0, need = job.batch * (job.size + 64);
    if (need > room) {
        room = need;
        if (!(buffer = realloc(buffer, room)) || !(pad = realloc(pad, room)))
            die("realloc");
        memset(pad, 'x', room);
    }
    for (uint64_t i = 0; i < job.batch && job.next < job.end; i++, job.next++)
        used += sprintf(buffer + used, "data: %010lu %019lu %.*s\n\n", job.next,
                        now_ns(), (int)(job.size > 31 ? job.size - 31 : 0), pad);
    for (int i = 0; i < client_count; i++) send_all(clients[i], buffer, used);
    job.due += job.interval_ns;
    if (job.next == job.end) puts("done -");
}

static int listen_anywhere(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = { .sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof at;
    if (fd < 0 || bind(fd, (void *)&at, size) || listen(fd, 4096)) die("listen");
    getsockname(fd, (void *)&at, &size);
    printf("ready %d\n", ntohs(at.sin_port));
    return fd;
}

static int patience_ms(void)
{
    if (job.next == job.end) return -1;
    uint64_t now = now_ns();
    return job.due <= now ? 0 : (job.due - now + 999999) / 1000000;
}

int main(void)
{
    static struct epoll_event ready[READY];
    setvbuf(stdout, NULL, _IOLBF, 0);
    int epoll = epoll_create1(0), listener = listen_anywhere();
    watch(epoll, listener);
    watch(epoll, 0);
    for (;;) {
        int n = epoll_wait(epoll, ready, READY, patience_ms());
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) accept_all(epoll, listener);
            else if (fd == 0) obey();
            else hear(fd);
        }
        if (job.next < job.end && now_ns() >= job.due) sweep();
    }
}
