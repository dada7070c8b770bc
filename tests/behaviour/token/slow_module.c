/* A PKCS#11 module in front of another: every signature takes as long as a file says, one at a time, as on a smart card.
 * The file ($SLOW_MODULE_FILE) holds milliseconds, read at each signature. The real module is $SLOW_MODULE_REAL. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t (*sign_t)(ulong_t, unsigned char *, ulong_t, unsigned char *, ulong_t *);

/* CK_FUNCTION_LIST of version 2.40: two bytes of version, padding, 68 pointers in the order of the standard. */
enum { FUNCTIONS = 68, GET_FUNCTION_LIST = 3, SIGN = 43 };
struct list {
    unsigned char version[8];
    void *functions[FUNCTIONS];
};

static struct list ours;
static sign_t real_sign;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static ulong_t slow_sign(ulong_t session, unsigned char *data, ulong_t length, unsigned char *out, ulong_t *room) {
    if (out == NULL) return real_sign(session, data, length, out, room);
    pthread_mutex_lock(&one_at_a_time);
    FILE *file = fopen(getenv("SLOW_MODULE_FILE"), "r");
    long milliseconds = 0;
    if (file != NULL) {
        if (fscanf(file, "%ld", &milliseconds) != 1) milliseconds = 0;
        fclose(file);
    }
    usleep(milliseconds * 1000);
    ulong_t result = real_sign(session, data, length, out, room);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

ulong_t C_GetFunctionList(struct list **list);

ulong_t C_GetFunctionList(struct list **list) {
    void *module = dlopen(getenv("SLOW_MODULE_REAL"), RTLD_NOW);
    if (module == NULL) return 5;
    ulong_t (*get)(struct list **) = (ulong_t(*)(struct list **))dlsym(module, "C_GetFunctionList");
    struct list *theirs = NULL;
    if (get == NULL || get(&theirs) != 0) return 5;
    memcpy(&ours, theirs, sizeof ours);
    real_sign = (sign_t)ours.functions[SIGN];
    ours.functions[SIGN] = (void *)slow_sign;
    ours.functions[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
    *list = &ours;
    return 0;
}
