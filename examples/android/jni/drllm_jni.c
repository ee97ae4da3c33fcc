/* The native methods of org.drllm.DrLlm. They keep no reference beyond a call, and no state but the handles. */
#include "answer.h"
#include "handle.h"
#include "text.h"
#include "throw.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static struct handle *handle_of(jlong number) {
    return (struct handle *)(intptr_t)number;
}

/* ---- Opening and closing ---- */

static struct drllm_session_params session_params(jint context, jint threads, jboolean compact) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = (size_t)context;
    params.n_threads = (unsigned)threads;
    params.kv_type = compact == JNI_TRUE ? DRLLM_KV_Q8_0 : DRLLM_KV_F16;
    return params;
}

static jlong open_file(JNIEnv *env, const struct handle_file *file, const struct drllm_session_params *params) {
    struct drllm_error error = {0};
    struct handle *handle = NULL;
    const int status = handle_open(file, params, &handle, &error);
    if (status != DRLLM_OK) {
        jni_throw(env, status, error.detail);
        return 0;
    }
    return (jlong)(intptr_t)handle;
}

/* A path ends with its first zero byte, so that one inside would name another file. */
static bool read_path(JNIEnv *env, jstring path, struct jni_text *text) {
    if (!jni_text_from_string(env, path, text)) {
        return false;
    }
    if (strlen(text->data) == text->size) {
        return true;
    }
    jni_text_free(text);
    jni_throw(env, DRLLM_ERR_ARGUMENT, "the path has a zero character");
    return false;
}

static jlong open_path(JNIEnv *env, jclass type, jstring path, jint context, jint threads, jboolean compact) {
    const struct drllm_session_params params = session_params(context, threads, compact);
    struct jni_text text;
    (void)type;
    if (!read_path(env, path, &text)) {
        return 0;
    }
    const struct handle_file file = {.path = text.data};
    const jlong handle = open_file(env, &file, &params);
    jni_text_free(&text);
    return handle;
}

static jlong open_fd(JNIEnv *env, jclass type, jint descriptor, jlong offset, jlong size, jint context, jint threads,
                     jboolean compact) {
    const struct drllm_session_params params = session_params(context, threads, compact);
    const struct handle_file file = {.descriptor = descriptor, .offset = (uint64_t)offset, .size = (uint64_t)size};
    (void)type;
    return open_file(env, &file, &params);
}

static jlong new_session(JNIEnv *env, jclass type, jlong number) {
    struct drllm_error error = {0};
    struct handle *other = NULL;
    (void)type;
    const int status = handle_share(handle_of(number), &other, &error);
    if (status != DRLLM_OK) {
        jni_throw(env, status, error.detail);
        return 0;
    }
    return (jlong)(intptr_t)other;
}

static void close_handle(JNIEnv *env, jclass type, jlong number) {
    (void)env;
    (void)type;
    handle_close(handle_of(number));
}

static void cancel(JNIEnv *env, jclass type, jlong number) {
    (void)env;
    (void)type;
    handle_cancel(handle_of(number));
}

static void settle(JNIEnv *env, jclass type, jlong number) {
    (void)env;
    (void)type;
    atomic_store(&handle_of(number)->cancelled, false);
}

static void reset(JNIEnv *env, jclass type, jlong number) {
    (void)env;
    (void)type;
    drllm_session_reset(handle_of(number)->session);
}

/* ---- Results ---- */

/* An array of Strings; NULL with an exception pending. */
static jobjectArray string_array(JNIEnv *env, const struct jni_text *texts, jsize count) {
    jclass type = (*env)->FindClass(env, "java/lang/String");
    jobjectArray array = type == NULL ? NULL : (*env)->NewObjectArray(env, count, type, NULL);
    for (jsize i = 0; array != NULL && i < count; i++) {
        jstring string = jni_string_from_text(env, texts[i].data, texts[i].size);
        if (string == NULL) {
            return NULL;
        }
        (*env)->SetObjectArrayElement(env, array, i, string);
        (*env)->DeleteLocalRef(env, string);
        if ((*env)->ExceptionCheck(env)) {
            return NULL;
        }
    }
    return array;
}

static jlong to_jlong(uint64_t value) {
    return value < INT64_MAX ? (jlong)value : INT64_MAX;
}

static jobjectArray get_info(JNIEnv *env, jclass type, jlong number, jlongArray numbers) {
    struct drllm_model_info info;
    (void)type;
    drllm_model_get_info(handle_of(number)->model, &info);
    const bool chat = info.chat_template != DRLLM_CHAT_NONE && info.chat_template != DRLLM_CHAT_UNKNOWN;
    const jlong values[] = {to_jlong(info.n_layers), to_jlong(info.n_vocab),      to_jlong(info.n_context_trained),
                            to_jlong(info.n_params), to_jlong(info.weight_bytes), chat};
    (*env)->SetLongArrayRegion(env, numbers, 0, sizeof values / sizeof values[0], values);
    if ((*env)->ExceptionCheck(env)) {
        return NULL;
    }
    const struct jni_text texts[] = {{(char *)info.name, strlen(info.name), 0},
                                     {(char *)info.quantization, strlen(info.quantization), 0},
                                     {(char *)info.backend, strlen(info.backend), 0}};
    return string_array(env, texts, 3);
}

/* ---- Depth ---- */

static void open_routers(JNIEnv *env, jlong number, const struct handle_file *file) {
    struct drllm_error error = {0};
    const int status = handle_open_routers(handle_of(number), file, &error);
    if (status != DRLLM_OK) {
        jni_throw(env, status, error.detail);
    }
}

static void open_routers_path(JNIEnv *env, jclass type, jlong number, jstring path) {
    struct jni_text text;
    (void)type;
    if (read_path(env, path, &text)) {
        const struct handle_file file = {.path = text.data};
        open_routers(env, number, &file);
        jni_text_free(&text);
    }
}

static void open_routers_fd(JNIEnv *env, jclass type, jlong number, jint descriptor, jlong offset, jlong size) {
    const struct handle_file file = {.descriptor = descriptor, .offset = (uint64_t)offset, .size = (uint64_t)size};
    (void)type;
    open_routers(env, number, &file);
}

static void open_routers_packed(JNIEnv *env, jclass type, jlong number) {
    (void)type;
    open_routers(env, number, NULL);
}

static void close_routers(JNIEnv *env, jclass type, jlong number) {
    (void)env;
    (void)type;
    handle_close_routers(handle_of(number));
}

/* power: battery, charging, thermal status. NaN with an exception pending. */
static float needed_saving(JNIEnv *env, jlong number, jfloat asked, jintArray power) {
    jint values[3];
    (*env)->GetIntArrayRegion(env, power, 0, 3, values);
    if ((*env)->ExceptionCheck(env)) {
        return NAN;
    }
    struct drllm_power state = drllm_power_unknown();
    state.battery_percent = values[0];
    state.charging = values[1];
    state.thermal = values[2];
    return handle_save_layers(handle_of(number), asked, &state);
}

static jfloat save_layers(JNIEnv *env, jclass type, jlong number, jfloat asked, jintArray power) {
    (void)type;
    return needed_saving(env, number, asked, power);
}

static void set_depth(JNIEnv *env, jclass type, jlong number, jfloat asked, jintArray power) {
    struct drllm_error error = {0};
    (void)type;
    const float layers = needed_saving(env, number, asked, power);
    if ((*env)->ExceptionCheck(env)) {
        return;
    }
    const int status = handle_set_depth(handle_of(number), layers, &error);
    if (status != DRLLM_OK) {
        jni_throw(env, status, error.detail);
    }
}

/* ---- Answers ---- */

/* Strings of Java, converted. */
struct text_list {
    struct jni_text *texts;
    size_t count;
};

static void text_list_free(struct text_list *list) {
    for (size_t i = 0; i < list->count; i++) {
        jni_text_free(&list->texts[i]);
    }
    free(list->texts);
}

/* False with an exception pending; *list can be freed in any case. Zero characters are refused: the library takes these
 * texts zero-terminated. */
static bool read_texts(JNIEnv *env, jobjectArray array, struct text_list *list) {
    const jsize count = (*env)->GetArrayLength(env, array);
    list->texts = calloc((size_t)count + 1, sizeof *list->texts);
    if (list->texts == NULL) {
        jni_throw_memory(env);
        return false;
    }
    for (jsize i = 0; i < count; i++) {
        jstring string = (*env)->GetObjectArrayElement(env, array, i);
        if ((*env)->ExceptionCheck(env)) {
            return false;
        }
        const bool read = jni_text_from_string(env, string, &list->texts[i]);
        (*env)->DeleteLocalRef(env, string);
        if (!read) {
            return false;
        }
        list->count++;
        if (strlen(list->texts[i].data) != list->texts[i].size) {
            jni_throw(env, DRLLM_ERR_ARGUMENT, "a message or stop text cannot hold zero characters");
            return false;
        }
    }
    return true;
}

/* The three arrays of Java and the C arrays made of them. */
struct request_texts {
    struct text_list roles, contents, stop;
    struct drllm_chat_message *messages;
    const char **stops;
};

static void request_texts_free(struct request_texts *texts) {
    text_list_free(&texts->roles);
    text_list_free(&texts->contents);
    text_list_free(&texts->stop);
    free(texts->messages);
    free(texts->stops);
}

static bool read_request_texts(JNIEnv *env, jobjectArray roles, jobjectArray contents, jobjectArray stop,
                               struct request_texts *texts, struct answer_request *request) {
    if (!read_texts(env, stop, &texts->stop)) {
        return false;
    }
    texts->stops = malloc((texts->stop.count + 1) * sizeof *texts->stops);
    if (texts->stops == NULL) {
        jni_throw_memory(env);
        return false;
    }
    for (size_t i = 0; i < texts->stop.count; i++) {
        texts->stops[i] = texts->stop.texts[i].data;
    }
    request->generate.stop = texts->stops;
    request->generate.n_stop = texts->stop.count;
    if (roles == NULL) {
        jstring prompt = (*env)->GetObjectArrayElement(env, contents, 0);
        return !(*env)->ExceptionCheck(env) && jni_text_from_string(env, prompt, &request->prompt);
    }
    if (!read_texts(env, roles, &texts->roles) || !read_texts(env, contents, &texts->contents)) {
        return false;
    }
    texts->messages = malloc((texts->roles.count + 1) * sizeof *texts->messages);
    if (texts->messages == NULL) {
        jni_throw_memory(env);
        return false;
    }
    for (size_t i = 0; i < texts->roles.count; i++) {
        texts->messages[i] = (struct drllm_chat_message){texts->roles.texts[i].data, texts->contents.texts[i].data};
    }
    request->messages = texts->messages;
    request->n_messages = texts->roles.count;
    return true;
}

static jobjectArray make_answer(JNIEnv *env, jlong number, const struct answer_request *request, jlongArray numbers) {
    struct answer answer = {0};
    jobjectArray texts = NULL;
    if (answer_make(env, handle_of(number), request, &answer)) {
        const jlong values[] = {answer.stop,
                                to_jlong(answer.n_prompt),
                                to_jlong(answer.n_computed),
                                to_jlong(answer.n_tokens),
                                to_jlong(answer.prompt_ns),
                                to_jlong(answer.answer_ns),
                                answer.layers_saved};
        (*env)->SetLongArrayRegion(env, numbers, 0, sizeof values / sizeof values[0], values);
        if (!(*env)->ExceptionCheck(env)) {
            const struct jni_text both[] = {answer.text, answer.program};
            texts = string_array(env, both, 2);
        }
    }
    jni_text_free(&answer.text);
    jni_text_free(&answer.program);
    return texts;
}

static jobjectArray answer(JNIEnv *env, jclass type, jlong number, jobjectArray roles, jobjectArray contents,
                           jobjectArray stop, jint max_tokens, jfloat temperature, jint top_k, jfloat top_p,
                           jfloat min_p, jfloat repeat_penalty, jint repeat_last, jlong seed, jobject listener,
                           jlongArray numbers) {
    struct answer_request request = {
        .sampler = drllm_sampler_default_params(), .generate = drllm_generate_default_params(), .listener = listener};
    struct request_texts texts = {0};
    jobjectArray made = NULL;
    (void)type;
    if (max_tokens < 0 || top_k < 0 || repeat_last < 0) {
        jni_throw(env, DRLLM_ERR_ARGUMENT, "maxTokens, topK and the tokens of repeatPenalty must be at least 0");
        return NULL;
    }
    request.generate.max_tokens = (size_t)max_tokens;
    request.sampler.temperature = temperature;
    request.sampler.top_k = (size_t)top_k;
    request.sampler.top_p = top_p;
    request.sampler.min_p = min_p;
    request.sampler.repeat_penalty = repeat_penalty;
    request.sampler.repeat_last_n = (size_t)repeat_last;
    request.sampler.seed = (uint64_t)seed;
    if (read_request_texts(env, roles, contents, stop, &texts, &request)) {
        made = make_answer(env, number, &request, numbers);
    }
    request_texts_free(&texts);
    jni_text_free(&request.prompt);
    return made;
}

/* ---- Registration: the class is checked against this table when it is loaded, and nothing else is exported ---- */

#define STRING "Ljava/lang/String;"

/* The pointers in the table are of one type, which is not a function's: POSIX and Android let them be converted. */
#define METHOD(name, signature, function) \
    { (char *)(name), (char *)(signature), (void *)(uintptr_t)(function) }

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved) {
    const JNINativeMethod methods[] = {
        METHOD("nativeOpenPath", "(" STRING "IIZ)J", open_path),
        METHOD("nativeOpenFd", "(IJJIIZ)J", open_fd),
        METHOD("nativeNewSession", "(J)J", new_session),
        METHOD("nativeClose", "(J)V", close_handle),
        METHOD("nativeCancel", "(J)V", cancel),
        METHOD("nativeSettle", "(J)V", settle),
        METHOD("nativeReset", "(J)V", reset),
        METHOD("nativeInfo", "(J[J)[" STRING, get_info),
        METHOD("nativeOpenRoutersPath", "(J" STRING ")V", open_routers_path),
        METHOD("nativeOpenRoutersFd", "(JIJJ)V", open_routers_fd),
        METHOD("nativeOpenRoutersPacked", "(J)V", open_routers_packed),
        METHOD("nativeCloseRouters", "(J)V", close_routers),
        METHOD("nativeSaveLayers", "(JF[I)F", save_layers),
        METHOD("nativeSetDepth", "(JF[I)V", set_depth),
        METHOD("nativeAnswer", "(J[" STRING "[" STRING "[" STRING "IFIFFFIJLorg/drllm/TextListener;[J)[" STRING,
               answer),
    };
    JNIEnv *env = NULL;
    (void)reserved;
    if ((*vm)->GetEnv(vm, (void **)&env, JNI_VERSION_1_6) != JNI_OK) {
        return JNI_ERR;
    }
    jclass type = (*env)->FindClass(env, "org/drllm/DrLlm");
    if (type == NULL || (*env)->RegisterNatives(env, type, methods, sizeof methods / sizeof methods[0]) != JNI_OK) {
        return JNI_ERR;
    }
    return JNI_VERSION_1_6;
}
