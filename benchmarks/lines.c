/* lines SIZE: writes SIZE bytes to standard output in lines of 100 bytes, 64 KiB a write. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    static char block[65536 + 100];
    long left = argc > 1 ? atol(argv[1]) : 0, at = 0;
    for (unsigned i = 0; i < sizeof block; i++) block[i] = i % 100 == 99 ? '\n' : 'x';
    while (left > 0) {
        size_t size = left < 65536 ? left : 65536;
        ssize_t done = write(1, block + at % 100, size);
        if (done <= 0) return 1;
        left -= done;
        at += done;
    }
    return 0;
}
