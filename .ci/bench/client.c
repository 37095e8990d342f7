/* The load: N subscribers in one process, one thread, one epoll set.
 *
 *   client PORT CONNECTIONS INFLIGHT CHANNELS PATH [HEADER]
 *
 * Opens the connections to 127.0.0.1, INFLIGHT of them at a time under way, asks each
 * for PATH (with CHANNELS > 0 connection i asks for "?channel=c<i>", the last channel
 * taking all that are left), and prints a JSON line once every one has its head. Then:
 *
 *   reset                        forget the counts and the latencies
 *   report SEQ WANTED TIMEOUT    print them as JSON, as soon as WANTED connections
 *                                have seen event SEQ or TIMEOUT milliseconds are over
 *
 * An event's data begins with its number and its time of publication in nanoseconds of
 * CLOCK_MONOTONIC. Each connection checks that its numbers rise by one; the delivery
 * time ends when recv() has returned the event's last byte.
 */
#include "shared.h"
#include <sched.h>
#include <strings.h>

enum {
    READY = 64,              /* connections served before giving way, see main */
    RECEIVE = 256 * 1024,
    HEAD_LIMIT = 8192,
    KEPT = 64,               /* of a line that is not complete yet */
    PER_ADDRESS = 20000,     /* connections from one source address */
    SPIN_NS = 1000000,       /* awake after the last event */
    BUCKET_NS = 10000,       /* the resolution of the latencies */
    BUCKETS = 2000000,       /* and their range: 20 s */
};

/* Where a connection is in its response: the head, a body without framing, or in a
 * chunk's size line, its data, or the line end after the data. */
enum state { IN_HEAD, IN_BODY, IN_SIZE, IN_CHUNK, IN_CHUNK_END, ENDED };

struct connection {
    int fd;
    enum state state;
    char *head;              /* HEAD_LIMIT bytes until the head is complete */
    size_t head_length;
    uint64_t chunk_left;
    char kept[KEPT];         /* the beginning of an incomplete line */
    int kept_length;
    int has_data, is_gap;    /* of the event that is being read */
    uint64_t number, published;
    uint64_t last;           /* number of the last event; 0 before the first */
};

static struct connection *connections;
static int wanted_connections, opened, got_head, inflight_limit, channels, port;
static const char *path, *header;
static int epoll;

static uint32_t histogram[BUCKETS];
static struct {
    uint64_t events, lost, disordered, gaps, max_ns, first_published, last_received;
} count;
static int closed;           /* connections that ended; never forgotten */

/* The report that was asked for and waits for its event. */
static struct { int asked, wanted, reached; uint64_t number, deadline; } pending;

static void reset(void)
{
    memset(histogram, 0, sizeof histogram);
    memset(&count, 0, sizeof count);
    count.first_published = UINT64_MAX;
}

static double percentile_us(double part)
{
    uint64_t rank = part * count.events, seen = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += histogram[i]) > rank) return (i + 0.5) * BUCKET_NS / 1000;
    return count.max_ns / 1000.0;
}

static void report(void)
{
    double span = count.events ? (count.last_received - count.first_published) / 1e9 : 0;
    printf("{\"events\": %" PRIu64 ", \"lost\": %" PRIu64 ", \"disordered\": %" PRIu64
           ", \"gaps\": %" PRIu64 ", \"closed\": %d, \"reached\": %d, "
           "\"span_s\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f}\n",
           count.events, count.lost, count.disordered, count.gaps, closed,
           pending.reached, span, percentile_us(0.50), percentile_us(0.99));
    pending.asked = 0;
}

static void dispatch(struct connection *c, uint64_t received)
{
    if (c->is_gap) {
        count.gaps++;
    } else if (c->has_data) {
        uint64_t ns = received > c->published ? received - c->published : 0;
        uint64_t bucket = ns / BUCKET_NS;
        histogram[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
        if (ns > count.max_ns) count.max_ns = ns;
        if (c->published < count.first_published) count.first_published = c->published;
        count.last_received = received;
        count.events++;
        if (c->last && c->number > c->last + 1) count.lost += c->number - c->last - 1;
        if (c->number <= c->last) count.disordered++;
        if (pending.asked && c->last < pending.number && c->number >= pending.number)
            pending.reached++;
        c->last = c->number;
    }
    c->has_data = c->is_gap = 0;
}

static const char *number(const char *p, const char *end, uint64_t *value)
{
    for (*value = 0; p < end && *p >= '0' && *p <= '9'; p++)
        *value = *value * 10 + (*p - '0');
    return p;
}

static void take_line(struct connection *c, const char *p, size_t length, uint64_t at)
{
    const char *end = p + length;
    if (end > p && end[-1] == '\r') end--;
    if (p == end) {
        dispatch(c, at);
    } else if (end - p > 5 && !memcmp(p, "data:", 5)) {
        for (p += 5; p < end && (*p == ' ' || *p == '"'); p++);
        const char *after = number(p, end, &c->number);
        if (after == p) return; /* data of the server's own, such as a greeting */
        number(after + 1, end, &c->published);
        c->has_data = 1;
    } else if (end - p >= 10 && !memcmp(p, "event: gap", 10)) {
        c->is_gap = 1;
    }
}

static void take_text(struct connection *c, const char *p, size_t n, uint64_t at)
{
    while (n) {
        const char *newline = memchr(p, '\n', n);
        size_t length = newline ? (size_t)(newline - p) : n;
        if (newline && !c->kept_length) {
            take_line(c, p, length, at);
        } else {
            size_t room = KEPT - c->kept_length;
            size_t more = length < room ? length : room;
            memcpy(c->kept + c->kept_length, p, more);
            c->kept_length += more;
            if (!newline) return;
            take_line(c, c->kept, c->kept_length, at);
            c->kept_length = 0;
        }
        p = newline + 1;
        n -= length + 1;
    }
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f'
           ? (c | 32) - 'a' + 10 : -1;
}

/* A chunk's size line may be cut anywhere; its digits are summed up as they come. */
static void take_body(struct connection *c, const char *p, size_t n, uint64_t at)
{
    if (c->state == IN_BODY) {
        take_text(c, p, n, at);
        return;
    }
    while (n) {
        if (c->state == IN_CHUNK) {
            size_t part = n < c->chunk_left ? n : c->chunk_left;
            take_text(c, p, part, at);
            p += part;
            n -= part;
            if (!(c->chunk_left -= part)) c->state = IN_CHUNK_END;
            continue;
        }
        if (c->state == IN_SIZE && hex(*p) >= 0)
            c->chunk_left = c->chunk_left * 16 + hex(*p);
        else if (*p == '\n' && c->state == IN_SIZE)
            c->state = c->chunk_left ? IN_CHUNK : ENDED;
        else if (*p == '\n' && c->state == IN_CHUNK_END)
            c->state = IN_SIZE;
        p++;
        n--;
    }
}

static void take_head(struct connection *c, const char *p, size_t n, uint64_t at)
{
    size_t before = c->head_length, room = HEAD_LIMIT - 1 - before;
    c->head_length += n < room ? n : room;
    memcpy(c->head + before, p, c->head_length - before);
    c->head[c->head_length] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end && c->head_length < HEAD_LIMIT - 1) return;
    if (!end || strncmp(c->head, "HTTP/1.1 200", 12)) {
        fprintf(stderr, "not the head of a stream: %.200s\n", c->head);
        exit(1);
    }
    end[2] = 0;
    int chunked = strcasestr(c->head, "\r\ntransfer-encoding: chunked\r\n") != NULL;
    c->state = chunked ? IN_SIZE : IN_BODY;
    got_head++;
    size_t used = end + 4 - c->head - before;
    free(c->head);
    c->head = NULL;
    take_body(c, p + used, n - used, at);
}

static void receive(struct connection *c)
{
    static char buffer[RECEIVE];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
        if (c->state == IN_HEAD) {
            fprintf(stderr, "connection %td ended before its head: %s\n",
                    c - connections, n ? strerror(errno) : "end of file");
            exit(1);
        }
        close(c->fd);
        closed++;
        return;
    }
    uint64_t at = now_ns();
    if (c->state == IN_HEAD) take_head(c, buffer, n, at);
    else take_body(c, buffer, n, at);
}

static void send_request(struct connection *c)
{
    char request[1024], channel[32] = "";
    int index = c - connections;
    if (channels)
        sprintf(channel, "?channel=c%d", index < channels ? index : channels - 1);
    int n = snprintf(request, sizeof request,
                     "GET %s%s HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                     "Accept: text/event-stream\r\n%s%s\r\n",
                     path, channel, header ? header : "", header ? "\r\n" : "");
    if (send(c->fd, request, n, MSG_NOSIGNAL) != n) die("send");
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e)) die("epoll_ctl");
}

static void open_connection(struct connection *c)
{
    int index = c - connections, on = 1;
    struct sockaddr_in from = { .sin_family = AF_INET }, to = { .sin_family = AF_INET };
    from.sin_addr.s_addr = htonl(INADDR_LOOPBACK + index / PER_ADDRESS);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(port);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(c->fd, (void *)&from, sizeof from)) die("bind");
    if (connect(c->fd, (void *)&to, sizeof to) && errno != EINPROGRESS) die("connect");
    if (!(c->head = malloc(HEAD_LIMIT))) die("malloc");
    struct epoll_event e = { .events = EPOLLOUT, .data.ptr = c };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
}

static void obey(void)
{
    char line[256];
    unsigned timeout_ms;
    ssize_t n = read(0, line, sizeof line - 1);
    if (n <= 0) exit(0);
    line[n] = 0;
    if (!strcmp(line, "reset\n")) {
        reset();
        puts("{}");
    } else if (sscanf(line, "report %" SCNu64 " %d %u", &pending.number,
                      &pending.wanted, &timeout_ms) == 3) {
        pending.asked = 1;
        pending.deadline = now_ns() + timeout_ms * 1000000ull;
        pending.reached = 0;
        for (int i = 0; i < wanted_connections; i++)
            pending.reached += connections[i].last >= pending.number;
    } else {
        fprintf(stderr, "unknown command: %s", line);
        exit(1);
    }
}

/* Wait for something to do, asleep only after SPIN_NS without it. A client that falls
 * asleep between two deliveries of a sweep makes the server pay for waking it, and the
 * slower the server the more often: a noisy cost that no remote client would cause. */
static int wait_ready(struct epoll_event *ready)
{
    int n, timeout = -1;
    uint64_t until = now_ns() + SPIN_NS;
    while (!(n = epoll_wait(epoll, ready, READY, 0)) && now_ns() < until) sched_yield();
    if (n) return n;
    if (pending.asked) {
        uint64_t now = now_ns();
        timeout = pending.deadline <= now ? 0 : (pending.deadline - now) / 1000000 + 1;
    }
    return epoll_wait(epoll, ready, READY, timeout);
}

int main(int argc, char **argv)
{
    static struct epoll_event ready[READY];
    if (argc < 6) { fprintf(stderr, "usage: see client.c\n"); return 2; }
    port = atoi(argv[1]);
    wanted_connections = atoi(argv[2]);
    inflight_limit = atoi(argv[3]);
    channels = atoi(argv[4]);
    path = argv[5];
    header = argc > 6 ? argv[6] : NULL;
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!(connections = calloc(wanted_connections, sizeof *connections))) die("calloc");
    epoll = epoll_create1(0);
    struct epoll_event commands = { .events = EPOLLIN, .data.ptr = NULL };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &commands)) die("epoll_ctl");
    reset();
    uint64_t started = now_ns();
    int announced = 0;
    for (;;) {
        while (opened < wanted_connections && opened - got_head < inflight_limit)
            open_connection(&connections[opened++]);
        int n = wait_ready(ready);
        for (int i = 0; i < n; i++) {
            struct connection *c = ready[i].data.ptr;
            if (!c) obey();
            else if (ready[i].events & EPOLLOUT) send_request(c);
            else receive(c);
        }
        sched_yield(); /* to a second process of clients on the same core */
        if (!announced && got_head == wanted_connections) {
            announced = 1;
            printf("{\"connected\": %d, \"seconds\": %.6f}\n", got_head,
                   (now_ns() - started) / 1e9);
        }
        if (pending.asked
            && (pending.reached >= pending.wanted || now_ns() >= pending.deadline))
            report();
    }
}
