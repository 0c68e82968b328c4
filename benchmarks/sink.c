/* sink: what a published port is measured against. Listens on port 80. The first byte of a connection says what it
 * is for: 'e' is answered by one byte at once; after 's' everything is read until its end, and then answered. */
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void) {
    static char buffer[1 << 20];
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0), client;
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(80)};
    signal(SIGCHLD, SIG_IGN);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&any, sizeof any) || listen(listener, 512)) return 1;
    while ((client = accept(listener, 0, 0)) >= 0) {
        if (read(client, buffer, 1) == 1) {
            if (*buffer == 's')
                while (read(client, buffer, sizeof buffer) > 0) continue;
            if (write(client, "x", 1) != 1) return 1;
        }
        close(client);
    }
    return 1;
}
