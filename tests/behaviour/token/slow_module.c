/* A PKCS#11 module in front of another: every signature takes as long as a file says, one at a time, as on a smart card.
 * Built for one token: REAL is the real module, CONF its configuration file, SLOW the file that holds milliseconds, read
 * again and again so that a signature that hangs can be let go; less than none flips a bit of each signature. WITHOUT lists mechanisms that the token shall not have. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t (*sign_t)(ulong_t, unsigned char *, ulong_t, unsigned char *, ulong_t *);
typedef ulong_t (*mechanisms_t)(ulong_t, ulong_t *, ulong_t *);

/* CK_FUNCTION_LIST of version 2.40: two bytes of version, padding, 68 pointers in the order of the standard. */
enum { FUNCTIONS = 68, GET_FUNCTION_LIST = 3, GET_MECHANISM_LIST = 7, SIGN = 43 };
struct list {
    unsigned char version[8];
    void *functions[FUNCTIONS];
};

static struct list ours;
static sign_t real_sign;
static mechanisms_t real_mechanisms;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static const ulong_t without[] = {WITHOUT};

static long milliseconds(void) {
    FILE *file = fopen(SLOW, "r");
    long found = 0;
    if (file == NULL) return 0;
    if (fscanf(file, "%ld", &found) != 1) found = 0;
    fclose(file);
    return found;
}

static ulong_t slow_sign(ulong_t session, unsigned char *data, ulong_t length, unsigned char *out, ulong_t *room) {
    long first = milliseconds();
    if (out == NULL || first <= 0) {
        ulong_t plain = real_sign(session, data, length, out, room);
        if (out != NULL && first < 0 && plain == 0) out[10] ^= 1;
        return plain;
    }
    pthread_mutex_lock(&one_at_a_time);
    for (long slept = 0, wanted; slept < (wanted = milliseconds());) {
        long slice = wanted - slept < 20 ? wanted - slept : 20;
        usleep(slice * 1000);
        slept += slice;
    }
    ulong_t result = real_sign(session, data, length, out, room);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

static ulong_t fewer_mechanisms(ulong_t slot, ulong_t *found, ulong_t *count) {
    ulong_t result = real_mechanisms(slot, found, count), kept = 0;
    if (result != 0 || found == NULL) return result;
    for (ulong_t index = 0; index < *count; index++) {
        int left_out = 0;
        for (size_t other = 0; other < sizeof without / sizeof *without; other++) left_out |= found[index] == without[other];
        if (!left_out) found[kept++] = found[index];
    }
    *count = kept;
    return 0;
}

ulong_t C_GetFunctionList(struct list **list);

ulong_t C_GetFunctionList(struct list **list) {
    setenv("SOFTHSM2_CONF", CONF, 1);
    void *module = dlopen(REAL, RTLD_NOW);
    if (module == NULL) return 5;
    ulong_t (*get)(struct list **) = (ulong_t(*)(struct list **))dlsym(module, "C_GetFunctionList");
    struct list *theirs = NULL;
    if (get == NULL || get(&theirs) != 0) return 5;
    memcpy(&ours, theirs, sizeof ours);
    real_sign = (sign_t)ours.functions[SIGN];
    real_mechanisms = (mechanisms_t)ours.functions[GET_MECHANISM_LIST];
    ours.functions[SIGN] = (void *)slow_sign;
    ours.functions[GET_MECHANISM_LIST] = (void *)fewer_mechanisms;
    ours.functions[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
    *list = &ours;
    return 0;
}
