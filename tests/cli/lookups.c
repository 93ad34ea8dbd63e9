/* Preloaded by a test: names are not resolved, and no address but this machine's is connected to. The file $LOOKUPS has
   a line for each attempt, also of native code, which a test in Python could not see. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void note(const char *what) {
    FILE *file = fopen(getenv("LOOKUPS"), "a");
    fprintf(file, "%s\n", what);
    fclose(file);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    unsigned char address[sizeof(struct in6_addr)];
    if (node && inet_pton(AF_INET, node, address) != 1 && inet_pton(AF_INET6, node, address) != 1) {
        note(node);
        return EAI_FAIL;
    }
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    return real(node, service, hints, found);
}

struct hostent *gethostbyname(const char *node) {
    note(node);
    return NULL;
}

int connect(int socket, const struct sockaddr *to, socklen_t size) {
    const unsigned char *v4 = (const void *)&((const struct sockaddr_in *)to)->sin_addr;
    if ((to->sa_family == AF_INET && v4[0] != 127) ||
        (to->sa_family == AF_INET6 && !IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)to)->sin6_addr))) {
        note("connect");
        errno = ENETUNREACH;
        return -1;
    }
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    return real(socket, to, size);
}
