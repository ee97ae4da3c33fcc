/* Fuzz targets gguf and packed: models from memory. */
#include "runtime/crc32.h"
#include "runtime/packed_file.h"
#include "tests/fuzz.h"
#include "tests/router_builder.h"

#include <stdlib.h>
#include <string.h>

/* ---- Memory: counted, and not more than a file of this size should ever need ---- */

enum { MOST_BYTES = 64 << 20 };

static struct tiny_counted counted;
static struct drllm_allocator counted_allocator;

static void *allocate(void *user, size_t size, size_t alignment) {
    (void)user;
    return size > MOST_BYTES || counted.live_bytes > MOST_BYTES - size
               ? NULL
               : counted_allocator.allocate(counted_allocator.user, size, alignment);
}

static void release(void *user, void *memory, size_t size) {
    (void)user;
    counted_allocator.release(counted_allocator.user, memory, size);
}

/* ---- Use ---- */

static void check_status(int status, const struct drllm_error *error) {
    if (status != DRLLM_OK) {
        drllm_fuzz_check(status <= DRLLM_ERR_ARGUMENT && status >= DRLLM_ERR_SYSTEM && status != DRLLM_ERR_CANCELLED);
        drllm_fuzz_check(error->status == status && memchr(error->detail, '\0', sizeof error->detail) != NULL);
        drllm_fuzz_check(error->detail[0] != '\0');
    }
}

static void use_text(const struct drllm_model *model, size_t n_vocab) {
    static const char text[] = "<s>ab cd\n\n ee 123</s> \xff \xE2\x82\xAC zz<unk>\0 abcabc";
    int32_t ids[512];
    size_t n = 0, size = 0;
    char bytes[4096];
    struct drllm_error error;
    const int status = drllm_tokenize(model, text, sizeof text - 1, DRLLM_TOKENIZE_BOS | DRLLM_TOKENIZE_SPECIAL, ids,
                                      sizeof ids / sizeof ids[0], &n, &error);
    check_status(status, &error);
    if (status == DRLLM_OK) {
        for (size_t i = 0; i < n; i++) {
            drllm_fuzz_check(ids[i] >= 0 && (size_t)ids[i] < n_vocab);
        }
        const int back = drllm_detokenize(model, ids, n, true, bytes, sizeof bytes, &size);
        drllm_fuzz_check(back == DRLLM_OK ? size <= sizeof bytes : back == DRLLM_ERR_BUFFER && size > sizeof bytes);
    }
    for (size_t id = 0; id < n_vocab; id++) {
        const int piece = drllm_token_bytes(model, (int32_t)id, true, bytes, sizeof bytes, &size);
        drllm_fuzz_check(piece == DRLLM_OK || piece == DRLLM_ERR_BUFFER);
        (void)drllm_token_is_end(model, (int32_t)id);
    }
    const struct drllm_chat_message messages[] = {{"system", "a"}, {"user", "b c"}, {"assistant", ""}, {"user", "d"}};
    check_status(drllm_chat_format(model, messages, 4, true, bytes, sizeof bytes, &size, &error), &error);
}

static void use_session(const struct drllm_model *model, size_t n_vocab, const struct drllm_depth *depth) {
    struct drllm_session_params params = drllm_session_default_params();
    params.n_context = 16;
    params.n_threads = 1;
    struct drllm_session *session = NULL;
    struct drllm_error error;
    const int status = drllm_session_open(model, &params, &session, &error);
    check_status(status, &error);
    if (status == DRLLM_OK) {
        const int32_t tokens[] = {0, (int32_t)(n_vocab / 2), (int32_t)n_vocab - 1};
        if (depth == NULL || drllm_session_set_depth(session, depth) == DRLLM_OK) {
            if (drllm_session_prefill(session, tokens, 3) == DRLLM_OK) {
                drllm_fuzz_check(drllm_session_logits(session) != NULL && drllm_session_n_tokens(session) == 3);
                (void)drllm_session_decode(session, tokens[0]);
            } else {
                drllm_fuzz_check(drllm_session_last_error(session)[0] != '\0');
            }
        }
        drllm_session_close(session);
    }
}

static void use(const struct drllm_model *model) {
    struct drllm_model_info info;
    drllm_model_get_info(model, &info);
    drllm_fuzz_check(info.n_vocab > 0 && info.n_layers > 0 && info.name != NULL);
    use_text(model, info.n_vocab);
    use_session(model, info.n_vocab, NULL);
    struct drllm_routers *routers = NULL;
    struct drllm_error error;
    const int status = drllm_routers_open_packed(model, &routers, &error);
    check_status(status, &error);
    if (status == DRLLM_OK) {
        struct drllm_depth depth = drllm_depth_default();
        depth.kind = DRLLM_DEPTH_ROUTED;
        depth.routers = routers;
        use_session(model, info.n_vocab, &depth);
        drllm_fuzz_check(drllm_routers_close(routers) == DRLLM_OK);
    }
}

void drllm_fuzz_model(const uint8_t *data, size_t size) {
    counted = (struct tiny_counted){.fail_at = SIZE_MAX};
    counted_allocator = tiny_counted_allocator(&counted);
    struct drllm_model_params params = drllm_model_default_params();
    params.allocator = (struct drllm_allocator){allocate, release, NULL};
    params.load_threads = 1;
    /* Which way: by the bytes, so that an input is always the same. */
    const uint32_t sum = drllm_crc32(0, data, size < 4096 ? size : 4096);
    params.compute = sum % 8 == 0 ? DRLLM_COMPUTE_XNNPACK : sum % 8 == 1 ? DRLLM_COMPUTE_F32 : DRLLM_COMPUTE_EXACT;
    params.verify = sum % 3 == 0;
    struct drllm_model *model = NULL;
    struct drllm_error error;
    const int status = drllm_model_open_memory(data, size, &params, &model, &error);
    check_status(status, &error);
    if (status == DRLLM_OK) {
        drllm_fuzz_n_accepted++;
        use(model);
        drllm_fuzz_check(drllm_model_close(model) == DRLLM_OK);
    }
    drllm_fuzz_check(counted.n_live == 0 && !counted.wrong);
}

/* ---- Samples ---- */

bool drllm_fuzz_model_options(size_t number, struct tiny_options *options) {
    static const enum drllm_format formats[] = {DRLLM_FORMAT_Q4_1, DRLLM_FORMAT_Q8_0, DRLLM_FORMAT_Q4_0,
                                                DRLLM_FORMAT_F32, DRLLM_FORMAT_Q8C};
    if (number >= sizeof formats / sizeof formats[0]) {
        return false;
    }
    *options = tiny_default_options();
    options->n_layers = 2;
    options->d_model = options->d_ff = 32;
    options->n_heads = 2;
    options->n_kv_heads = 1;
    options->head_dim = 16;
    options->blocks = options->down = options->embedding = formats[number];
    options->bpe = number % 2 == 1;
    options->biases = number == 1;
    options->rope_freqs = number == 2;
    options->untied = number == 3;
    options->head = DRLLM_FORMAT_F32;
    return true;
}

static uint8_t *gguf_sample(size_t number, size_t *size) {
    struct tiny_options options;
    return drllm_fuzz_model_options(number, &options) ? tiny_model_file(&options, size) : NULL;
}

const struct drllm_fuzz_target drllm_fuzz_gguf = {"gguf", 20000, gguf_sample, NULL, drllm_fuzz_model};

/* ---- Packed ---- */

struct bytes {
    uint8_t *data;
    size_t size;
};

static bool append(void *user, const void *data, size_t size) {
    struct bytes *bytes = user;
    if (size != 0) {
        uint8_t *grown = realloc(bytes->data, bytes->size + size);
        if (grown == NULL) {
            abort();
        }
        memcpy(grown + bytes->size, data, size);
        bytes->data = grown;
        bytes->size += size;
    }
    return true;
}

static uint8_t *packed_sample(size_t number, size_t *size) {
    struct tiny_options options;
    if (!drllm_fuzz_model_options(number, &options)) {
        return NULL;
    }
    size_t gguf_size = 0, routers_size = 0;
    uint8_t *gguf = tiny_model_file(&options, &gguf_size);
    const struct router_options router_options = router_default_options(&options);
    uint8_t *routers = number % 2 == 0 ? router_builder_file(&router_options, &routers_size) : NULL;
    struct drllm_model_params params = drllm_model_default_params();
    params.head = DRLLM_HEAD_FILE;
    params.load_threads = 1;
    struct drllm_model *model = NULL;
    struct bytes bytes = {NULL, 0};
    drllm_fuzz_check(drllm_model_open_memory(gguf, gguf_size, &params, &model, NULL) == DRLLM_OK);
    drllm_fuzz_check(drllm_packed_write(model, routers, routers_size, append, &bytes, NULL) == DRLLM_OK);
    drllm_fuzz_check(drllm_model_close(model) == DRLLM_OK);
    free(gguf);
    free(routers);
    *size = bytes.size;
    return bytes.data;
}

/* Correct the size and the checksums, as far as the table can be believed. */
static void packed_repair(uint8_t *data, size_t size) {
    struct drllm_packed_header header;
    if (size < sizeof header) {
        return;
    }
    memcpy(&header, data, sizeof header);
    const size_t n_most = (size - sizeof header) / sizeof(struct drllm_packed_section);
    const size_t n = header.n_sections < n_most ? header.n_sections : n_most;
    const size_t table = n * sizeof(struct drllm_packed_section);
    for (size_t i = 0; i < n; i++) {
        uint8_t *place = data + sizeof header + i * sizeof(struct drllm_packed_section);
        struct drllm_packed_section section;
        memcpy(&section, place, sizeof section);
        if (section.offset <= size && section.size <= size - section.offset &&
            section.offset >= sizeof header + table) {
            section.checksum = drllm_crc32(0, data + section.offset, (size_t)section.size);
            memcpy(place, &section, sizeof section);
        }
    }
    header.file_size = size;
    header.checksum = 0;
    header.checksum = drllm_crc32(drllm_crc32(0, &header, sizeof header), data + sizeof header, table);
    memcpy(data, &header, sizeof header);
}

const struct drllm_fuzz_target drllm_fuzz_packed = {"packed", 16000, packed_sample, packed_repair, drllm_fuzz_model};
