/* A streaming server with a known timetable: what a load tester reports can be held against the truth.
 *
 *   cc -O2 -o timetable server.c && ./timetable --port 0 --first-ms 50 --gap-ms 10 --seconds 60
 *
 * Speaks OpenAI's /v1/chat/completions and /v1/completions, and Triton's /v2/models/NAME/generate_stream. Every answer
 * has max_tokens tokens: the first one --first-ms after the request's last byte arrived, each further one --gap-ms
 * after the one before, on absolute deadlines (a late token does not delay the next). One thread, epoll, a heap of
 * deadlines, TCP_NODELAY. Binds to loopback only and ends by itself after --seconds.
 *
 * The model's name asks for a fault, so that a client's manners can be tested:
 *   stall      every 50th gap is 100 ms longer (its further tokens follow that much later)
 *   pairs      two tokens in each event          empty     no token at all
 *   cut        the connection closes half-way    endless   the stream never ends after its last token
 *   malformed  an event that is not JSON         error     an error event half-way, then the end
 *   refuse     HTTP 503 at once                  huge      64 KiB of text in each event
 *   reset      the connection is reset half-way  silent    nothing more comes after half of the tokens
 *   comments   half-way on, comments for ever    babble    tokens for ever
 *   plain      JSON with status 200, no stream   dribble   every event byte by byte
 *   reasoning  half the tokens are thoughts      close     neither chunks nor a length: ends with the connection
 *
 * With --key KEY every request must carry it as a bearer token; the refusal quotes what came, as some servers do.
 *
 * With --log FILE it writes a line for each whole reply: the request's "id", then, in seconds of CLOCK_MONOTONIC, when its
 * last byte was read and when each event with a token was about to be sent. That is what really happened, lateness
 * included, so that what a client adds can be told from what a busy machine did to this server.
 *
 * On stdout: "port N" when it listens, "first T" at the first request, T of CLOCK_MONOTONIC; at the end one line of JSON
 * with its own lateness in seconds, when its first and last tokens were due, and the tokens a second of the time between
 * a quarter and three quarters of the way from one to the other: the load that was reached.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 1 << 15, REQUEST_BYTES = 1 << 20, HUGE_BYTES = 1 << 16, LATENESS_BINS = 100000, RATE_BINS = 36000 };

typedef struct {
    int fd, sent, tokens, heap_index, received, events, room;
    bool openai, chat, usage;
    char fault[16];
    double due_s, arrived_s, *sent_s;
    char id[32], *request;
} Connection;

static double first_s = 0.050, gap_s = 0.010, run_s = 60;
static const char *key;
static FILE *log_file;
static Connection *heap[MAX_CONNECTIONS];
static int heap_size, epoll_fd, timer_fd;
static volatile sig_atomic_t stopping;
static sigset_t no_signals;
static long requests, tokens_sent, lateness_bins[LATENESS_BINS]; /* bins of 10 microseconds */
static double end_s, lateness_max_s, first_token_s, last_token_s;
static long bins[RATE_BINS]; /* tokens in each tenth of a second from the first token on */

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void stop(int signal_number) {
    (void)signal_number;
    stopping = 1;
}

/* -- the heap of deadlines ------------------------------------------------------------------------------------ */

static void put(int index, Connection *c) {
    heap[index] = c;
    c->heap_index = index;
}

static void sift(int index) {
    Connection *c = heap[index];
    for (int up; index > 0 && heap[up = (index - 1) / 2]->due_s > c->due_s; index = up) put(index, heap[up]);
    for (int down; (down = 2 * index + 1) < heap_size; index = down) {
        if (down + 1 < heap_size && heap[down + 1]->due_s < heap[down]->due_s) down++;
        if (heap[down]->due_s >= c->due_s) break;
        put(index, heap[down]);
    }
    put(index, c);
}

static void schedule(Connection *c, double due_s) {
    c->due_s = due_s;
    if (c->heap_index < 0) {
        heap[heap_size] = c;
        c->heap_index = heap_size++;
    }
    sift(c->heap_index);
}

static void unschedule(Connection *c) {
    int index = c->heap_index;
    if (index < 0) return;
    c->heap_index = -1;
    if (--heap_size == index) return;
    put(index, heap[heap_size]);
    sift(index);
}

/* -- connections ---------------------------------------------------------------------------------------------- */

static void drop(Connection *c) {
    unschedule(c);
    close(c->fd);
    free(c->request);
    free(c->sent_s);
    free(c);
}

/* Loopback takes an event whole unless the reader is far behind; then this waits for it, and the lateness shows. */
static bool send_all(Connection *c, const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t sent = send(c->fd, bytes, count, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (stopping || now_s() > end_s) return false;
            ppoll(&(struct pollfd){.fd = c->fd, .events = POLLOUT}, 1, &(struct timespec){.tv_nsec = 1000000}, &no_signals);
            continue;
        }
        if (sent <= 0) return false;
        bytes += sent;
        count -= (size_t)sent;
    }
    return true;
}

static bool is(const Connection *c, const char *fault) { return strcmp(c->fault, fault) == 0; }

static bool send_chunk(Connection *c, const char *event) {
    static char framed[HUGE_BYTES + 1024];
    if (is(c, "close")) return send_all(c, event, strlen(event));
    int count = snprintf(framed, sizeof framed, "%zx\r\n%s\r\n", strlen(event), event);
    if (!is(c, "dribble")) return send_all(c, framed, (size_t)count);
    for (int i = 0; i < count; i++)
        if (!send_all(c, framed + i, 1)) return false;
    return true;
}

static void note_sent(Connection *c) {
    if (!log_file) return;
    if (c->events == c->room) c->sent_s = realloc(c->sent_s, (size_t)(c->room = 2 * c->room + 64) * sizeof *c->sent_s);
    c->sent_s[c->events++] = now_s();
}

static void log_reply(const Connection *c) {
    if (!log_file) return;
    fprintf(log_file, "%s %.6f", c->id, c->arrived_s);
    for (int i = 0; i < c->events; i++) fprintf(log_file, " %.6f", c->sent_s[i]);
    fputc('\n', log_file);
}

static bool send_token_event(Connection *c) {
    static char text[HUGE_BYTES + 1], event[HUGE_BYTES + 512];
    int in_event = is(c, "pairs") && c->sent + 1 < c->tokens ? 2 : 1;
    if (is(c, "huge")) {
        memset(text, 'x', HUGE_BYTES);
    } else {
        strcpy(text, in_event == 2 ? " tick tock" : " tick");
    }
    if (is(c, "malformed") && c->sent == c->tokens / 2) {
        strcpy(event, "data: {\"choices\": [{\n\n");
    } else if (c->openai && c->chat) {
        const char *kind = is(c, "reasoning") && c->sent < c->tokens / 2 ? "reasoning_content" : "content";
        snprintf(event, sizeof event,
                 "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"%s\":\"%s\"}}]}\n\n",
                 kind, text);
    } else if (c->openai) {
        snprintf(event, sizeof event, "data: {\"object\":\"text_completion\",\"choices\":[{\"index\":0,\"text\":\"%s\"}]}\n\n",
                 text);
    } else {
        snprintf(event, sizeof event, "data: {\"model_name\":\"timetable\",\"text_output\":\"%s\"}\n\n", text);
    }
    c->sent += in_event;
    tokens_sent += in_event;
    note_sent(c);
    return send_chunk(c, event);
}

static void end_stream(Connection *c) {
    log_reply(c);
    if (c->openai) {
        char usage[256] = "";
        if (c->usage)
            snprintf(usage, sizeof usage,
                     "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":%d}}\n\n", c->sent);
        strcat(usage, "data: [DONE]\n\n");
        if (!send_chunk(c, usage)) return drop(c);
    }
    if (is(c, "close") || !send_all(c, "0\r\n\r\n", 5)) return drop(c);
    c->received = 0; /* ready for the next request on this connection */
}

static void note_lateness(double late_s) {
    if (late_s > lateness_max_s) lateness_max_s = late_s;
    long bin = (long)(late_s * 1e5);
    lateness_bins[bin < LATENESS_BINS ? bin : LATENESS_BINS - 1]++;
}

static void note_token(double due_s) {
    if (first_token_s == 0) first_token_s = due_s;
    if (due_s > last_token_s) last_token_s = due_s;
    long bin = (long)((due_s - first_token_s) * 10);
    if (bin >= 0 && bin < RATE_BINS) bins[bin]++;
}

static double steady_tokens_per_s(void) {
    long all = (long)((last_token_s - first_token_s) * 10), from = all / 4, to = all - all / 4, seen = 0;
    for (long i = from; i < to && i < RATE_BINS; i++) seen += bins[i];
    return to > from ? (double)seen / (double)(to - from) * 10 : 0;
}

static void on_due(Connection *c) {
    unschedule(c);
    bool half_way = c->sent >= c->tokens / 2;
    if (is(c, "cut") && half_way) return drop(c);
    if (is(c, "silent") && half_way) return;
    if (is(c, "reset") && half_way) {
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
        return drop(c);
    }
    if (is(c, "comments") && half_way) {
        if (!send_chunk(c, ": still here\n\n")) return drop(c);
        return schedule(c, c->due_s + gap_s);
    }
    if (is(c, "error") && half_way) {
        if (!send_chunk(c, "data: {\"error\":{\"message\":\"the engine gave up\",\"code\":500}}\n\n")) return drop(c);
        return end_stream(c);
    }
    if (c->sent < c->tokens) {
        note_lateness(now_s() - c->due_s);
        note_token(c->due_s);
        if (!send_token_event(c)) return drop(c);
    }
    if (c->sent < c->tokens) {
        bool stalled = is(c, "stall") && c->sent % 50 == 0;
        schedule(c, c->due_s + gap_s + (stalled ? 0.100 : 0));
    } else if (!is(c, "endless")) {
        end_stream(c);
    }
}

/* -- requests ------------------------------------------------------------------------------------------------- */

static int number_after(const char *text, const char *key, int fallback) {
    const char *found = strstr(text, key);
    if (!found) return fallback;
    found += strlen(key);
    while (*found == '"' || *found == ':' || *found == ' ') found++;
    return atoi(found);
}

static const char *const faults[] = {"stall", "pairs",  "empty",    "cut",    "endless", "malformed", "error",     "refuse", "huge",
                                     "reset", "silent", "comments", "babble", "plain",   "dribble",   "reasoning", "close"};
enum { FAULTS = sizeof faults / sizeof *faults };

static void read_fault(Connection *c, const char *request) {
    char name[64] = "";
    const char *path = strstr(request, "/v2/models/"), *body = strstr(request, "\"model\"");
    if (path) {
        sscanf(path, "/v2/models/%63[^/ ]", name);
    } else if (body) {
        sscanf(body, "\"model\" : \"%63[^\"]", name);
    }
    c->fault[0] = 0;
    for (size_t i = 0; i < FAULTS; i++)
        if (strcmp(name, faults[i]) == 0) strcpy(c->fault, faults[i]);
}

static void answer_plain(Connection *c, const char *status, const char *body) {
    char answer[1024];
    int count = snprintf(answer, sizeof answer, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                         status, strlen(body), body);
    c->received = 0;
    if (!send_all(c, answer, (size_t)count)) drop(c);
}

static int asked_tokens(const char *request) {
    return number_after(request, "\"max_tokens\"", number_after(request, "\"max_completion_tokens\"", 16));
}

static bool is_allowed(Connection *c) {
    char said[200] = "", refusal[300];
    const char *header = strcasestr(c->request, "\r\nAuthorization: Bearer ");
    if (header) sscanf(header + 24, "%199[^\r]", said);
    if (!key || strcmp(said, key) == 0) return true;
    snprintf(refusal, sizeof refusal, "{\"error\":{\"message\":\"Incorrect API key provided: %s\"}}", said);
    answer_plain(c, "401 Unauthorized", refusal);
    return false;
}

static void list_models(Connection *c) {
    char list[1024] = "{\"object\":\"list\",\"data\":[{\"id\":\"timetable\"}";
    for (size_t i = 0; i < FAULTS; i++) {
        size_t used = strlen(list);
        snprintf(list + used, sizeof list - used, ",{\"id\":\"%s\"}", faults[i]);
    }
    strcat(list, "]}");
    answer_plain(c, "200 OK", list);
}

static void on_request(Connection *c, double arrived_s) {
    char *request = c->request;
    c->openai = strncmp(request, "POST /v1/", 9) == 0;
    c->chat = strncmp(request, "POST /v1/chat/", 14) == 0;
    if (!is_allowed(c)) return;
    if (strncmp(request, "GET /v1/models", 14) == 0) return list_models(c);
    if (strncmp(request, "GET ", 4) == 0) return answer_plain(c, "200 OK", "{}");
    read_fault(c, request);
    if (requests++ == 0) {
        printf("first %.6f\n", arrived_s);
        fflush(stdout);
    }
    if (is(c, "plain")) return answer_plain(c, "200 OK", "{\"answer\":\"no stream\"}");
    if (is(c, "refuse")) return answer_plain(c, "503 Service Unavailable", "{\"error\":\"Exceeds maximum queue size\"}");
    const char *usage = strstr(request, "\"include_usage\"");
    c->usage = usage && strncmp(usage + 15 + strspn(usage + 15, ": "), "true", 4) == 0;
    c->sent = c->events = 0;
    c->arrived_s = arrived_s;
    const char *id = strstr(request, "\"id\"");
    if (!id || sscanf(id, "\"id\" : \"%31[^\"]", c->id) != 1) strcpy(c->id, "-");
    c->tokens = is(c, "empty") ? 0 : is(c, "babble") ? INT_MAX : asked_tokens(request);
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n%s\r\n\r\n";
    char filled[128];
    int count = snprintf(filled, sizeof filled, head, is(c, "close") ? "Connection: close" : "Transfer-Encoding: chunked");
    if (!send_all(c, filled, (size_t)count)) return drop(c);
    schedule(c, arrived_s + first_s);
}

static void on_bytes(Connection *c) {
    ssize_t count = recv(c->fd, c->request + c->received, (size_t)(REQUEST_BYTES - 1 - c->received), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) return drop(c);
    double arrived_s = now_s();
    c->received += (int)count;
    c->request[c->received] = 0;
    char *body = strstr(c->request, "\r\n\r\n");
    if (!body) return;
    const char *length = strcasestr(c->request, "\r\nContent-Length:");
    long wanted = length && length < body ? atol(length + 17) : 0;
    if (c->received >= body + 4 - c->request + wanted) {
        on_request(c, arrived_s);
    } else if (c->received >= REQUEST_BYTES - 1) {
        drop(c);
    }
}

static void on_connect(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    Connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    c->heap_index = -1;
    c->request = malloc(REQUEST_BYTES);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
}

/* -- the loop ------------------------------------------------------------------------------------------------- */

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 1024)) {
        perror("timetable: bind");
        exit(1);
    }
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("port %d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void arm_timer(void) {
    double due_s = heap_size && heap[0]->due_s < end_s ? heap[0]->due_s : end_s;
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)due_s, .tv_nsec = (long)((due_s - floor(due_s)) * 1e9)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

static double lateness_at(double share) {
    long all = 0, seen = 0;
    for (int i = 0; i < LATENESS_BINS; i++) all += lateness_bins[i];
    for (int i = 0; i < LATENESS_BINS; i++)
        if ((seen += lateness_bins[i]) >= share * (double)all) return i * 1e-5;
    return 0;
}

int main(int count, char **arguments) {
    int port = 0;
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(arguments[i], "--port")) port = atoi(arguments[i + 1]);
        if (!strcmp(arguments[i], "--first-ms")) first_s = atof(arguments[i + 1]) / 1000;
        if (!strcmp(arguments[i], "--gap-ms")) gap_s = atof(arguments[i + 1]) / 1000;
        if (!strcmp(arguments[i], "--log")) log_file = fopen(arguments[i + 1], "w");
        if (!strcmp(arguments[i], "--key")) key = arguments[i + 1];
        if (!strcmp(arguments[i], "--seconds")) run_s = atof(arguments[i + 1]);
    }
    sigset_t ends; /* taken while waiting and at no other time: none is missed just before a wait */
    sigemptyset(&no_signals);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    static char listener_mark, timer_mark;
    int listener = listen_on(port);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &listener_mark});
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &timer_mark});
    end_s = now_s() + run_s;
    while (!stopping && now_s() < end_s) {
        struct epoll_event event; /* one at a time: a dropped connection has no second event waiting in the batch */
        while (heap_size && heap[0]->due_s <= now_s()) on_due(heap[0]);
        arm_timer();
        if (epoll_pwait(epoll_fd, &event, 1, -1, &no_signals) <= 0) continue;
        uint64_t expirations;
        if (event.data.ptr == &listener_mark) on_connect(listener);
        else if (event.data.ptr == &timer_mark) (void)!read(timer_fd, &expirations, sizeof expirations);
        else on_bytes(event.data.ptr);
    }
    if (log_file) fclose(log_file);
    printf("{\"requests\": %ld, \"tokens\": %ld, \"late_s\": {\"p50\": %.5f, \"p99\": %.5f, \"max\": %.5f}, ", requests, tokens_sent,
           lateness_at(0.5), lateness_at(0.99), lateness_max_s);
    printf("\"first_token_s\": %.6f, \"last_token_s\": %.6f, \"steady_tokens_per_s\": %.1f}\n", first_token_s, last_token_s,
           steady_tokens_per_s());
    return 0;
}
