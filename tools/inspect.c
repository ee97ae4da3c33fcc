/* drllm inspect: what a GGUF file holds; a packed model goes to inspect_packed.c. */
#include "quant/kv_block.h"
#include "runtime/utf8.h"
#include "tools/commands.h"
#include "tools/common.h"
#include "tools/inspect_packed.h"
#include "tools/json.h"
#include "tools/mapped.h"
#include "tools/router_info.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN_ITEMS = 4, SHOWN_BYTES = 100 };

struct inspect_options {
    const char *path;
    int64_t context;
    int kv; /* enum drllm_kv_type */
    bool all;
    bool json;
    bool verify;
};

/* ---- Values ---- */

/* Unaligned little-endian numbers of any type as a double; integers past 2^53 are printed by print_integer instead. */
static uint64_t load_bits(const uint8_t *data, size_t size) {
    uint64_t bits = 0;
    for (size_t i = 0; i < size; i++) {
        bits |= (uint64_t)data[i] << (8 * i);
    }
    return bits;
}

static size_t type_size(uint32_t type) {
    switch (type) {
    case DRLLM_GGUF_U8:
    case DRLLM_GGUF_I8:
    case DRLLM_GGUF_BOOL:
        return 1;
    case DRLLM_GGUF_U16:
    case DRLLM_GGUF_I16:
        return 2;
    case DRLLM_GGUF_U32:
    case DRLLM_GGUF_I32:
    case DRLLM_GGUF_F32:
        return 4;
    case DRLLM_GGUF_U64:
    case DRLLM_GGUF_I64:
    case DRLLM_GGUF_F64:
        return 8;
    default:
        return 0;
    }
}

/* A number or truth value as text that is also JSON, but for infinities and NaN. */
static void format_scalar(uint32_t type, const uint8_t *data, char text[40]) {
    const uint64_t bits = load_bits(data, type_size(type));
    const uint32_t low = (uint32_t)bits;
    float single;
    double real;
    memcpy(&single, &low, sizeof single);
    memcpy(&real, &bits, sizeof real);
    switch (type) {
    case DRLLM_GGUF_BOOL:
        snprintf(text, 40, "%s", bits != 0 ? "true" : "false");
        break;
    case DRLLM_GGUF_I8:
        snprintf(text, 40, "%d", (int)(int8_t)bits);
        break;
    case DRLLM_GGUF_I16:
        snprintf(text, 40, "%d", (int)(int16_t)bits);
        break;
    case DRLLM_GGUF_I32:
        snprintf(text, 40, "%" PRId32, (int32_t)low);
        break;
    case DRLLM_GGUF_I64:
        snprintf(text, 40, "%" PRId64, (int64_t)bits);
        break;
    case DRLLM_GGUF_F32:
        snprintf(text, 40, "%.9g", (double)single);
        break;
    case DRLLM_GGUF_F64:
        snprintf(text, 40, "%.17g", real);
        break;
    default:
        snprintf(text, 40, "%" PRIu64, bits);
        break;
    }
}

/* How many items of an entry are shown. */
static size_t shown_items(const struct inspect_options *options, const struct drllm_gguf_entry *entry) {
    return options->all || entry->count < SHOWN_ITEMS ? entry->count : (size_t)SHOWN_ITEMS;
}

static void print_string(const struct inspect_options *options, struct drllm_string string) {
    const bool cut = !options->all && string.size > SHOWN_BYTES;
    char *clean = allocate(3 * string.size + 1, 1);
    /* A character that is cut in the middle does not become U+FFFD. */
    const size_t size = cut ? drllm_utf8_complete(string.data, SHOWN_BYTES) : string.size;
    print_quoted(stdout, clean, drllm_utf8_sanitise(string.data, size, clean));
    free(clean);
    if (cut) {
        printf("... (%zu bytes)", string.size);
    }
}

static struct drllm_string entry_string(const struct drllm_gguf *gguf, const struct drllm_gguf_entry *entry) {
    char *key = allocate(entry->key.size + 1, 1);
    memcpy(key, entry->key.data, entry->key.size);
    key[entry->key.size] = '\0';
    struct drllm_string string = {"", 0};
    drllm_gguf_get_string(gguf, key, &string);
    free(key);
    return string;
}

static void print_array(const struct inspect_options *options, const struct drllm_gguf_entry *entry) {
    const size_t n = shown_items(options, entry);
    size_t position = 0;
    printf("[");
    for (size_t i = 0; i < n; i++) {
        printf("%s", i == 0 ? "" : ", ");
        struct drllm_string string;
        char text[40];
        if (entry->item_type != DRLLM_GGUF_STRING) {
            format_scalar(entry->item_type, entry->data + i * type_size(entry->item_type), text);
            printf("%s", text);
        } else if (drllm_gguf_next_string(entry, &position, &string)) {
            print_string(options, string);
        }
    }
    printf("%s]", n < entry->count ? ", ..." : "");
}

static void print_entry(const struct inspect_options *options, const struct drllm_gguf *gguf,
                        const struct drllm_gguf_entry *entry) {
    char text[40];
    printf("  ");
    print_plain(stdout, entry->key.data, entry->key.size);
    printf(": ");
    if (entry->type == DRLLM_GGUF_ARRAY) {
        printf("%s[%zu] = ", drllm_gguf_type_name(entry->item_type), entry->count);
        print_array(options, entry);
    } else {
        printf("%s = ", drllm_gguf_type_name(entry->type));
        if (entry->type == DRLLM_GGUF_STRING) {
            print_string(options, entry_string(gguf, entry));
        } else {
            format_scalar(entry->type, entry->data, text);
            printf("%s", text);
        }
    }
    printf("\n");
}

/* ---- Sums ---- */

struct type_sum {
    uint32_t type;
    size_t tensors;
    uint64_t weights;
    uint64_t bytes;
};

struct sums {
    struct type_sum *types;
    size_t n_types;
    uint64_t weights;
    uint64_t bytes;
};

static struct sums sum_types(const struct drllm_gguf *gguf) {
    struct sums sums = {NULL, 0, 0, 0};
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        const struct drllm_gguf_tensor *tensor = &gguf->tensors[i];
        size_t at = 0;
        while (at < sums.n_types && sums.types[at].type != tensor->type) {
            at++;
        }
        if (at == sums.n_types) {
            sums.types = reallocate(sums.types, sums.n_types + 1, sizeof *sums.types);
            sums.types[sums.n_types++] = (struct type_sum){.type = tensor->type};
        }
        const uint64_t weights = (uint64_t)(tensor->dims[0] * tensor_rows(tensor));
        sums.types[at].tensors++;
        sums.types[at].weights += weights;
        sums.types[at].bytes += tensor->size;
        sums.weights += weights;
        sums.bytes += tensor->size;
    }
    return sums;
}

/* "llama.block_count" and the like, of the file's architecture. */
static bool get_shape(const struct drllm_gguf *gguf, const char *name, uint64_t *value) {
    struct drllm_string architecture;
    char key[128];
    if (!drllm_gguf_get_string(gguf, "general.architecture", &architecture)) {
        return false;
    }
    snprintf(key, sizeof key, "%.*s.%s", architecture.size < 64 ? (int)architecture.size : 64, architecture.data, name);
    return drllm_gguf_get_u64(gguf, key, value);
}

/* Bytes of the keys and values of one position; 0 when the metadata does not tell. */
static double kv_bytes(const struct inspect_options *options, const struct drllm_gguf *gguf) {
    uint64_t layers, heads, width, head_dim, kv_heads;
    if (!get_shape(gguf, "block_count", &layers) || !get_shape(gguf, "attention.head_count", &heads) ||
        !get_shape(gguf, "embedding_length", &width) || heads == 0) {
        return 0.0;
    }
    if (!get_shape(gguf, "attention.head_count_kv", &kv_heads)) {
        kv_heads = heads;
    }
    if (!get_shape(gguf, "attention.key_length", &head_dim)) {
        head_dim = width / heads;
    }
    const enum drllm_format format = options->kv == DRLLM_KV_Q8_0 ? DRLLM_FORMAT_Q8_0 : DRLLM_FORMAT_F16;
    const double keys = (double)drllm_kv_key_bytes(format, (size_t)head_dim) / DRLLM_KV_BLOCK;
    const double values =
        (double)drllm_kv_value_bytes(format, (size_t)head_dim) / (double)drllm_kv_value_positions(format);
    return (double)layers * (double)kv_heads * (keys + values);
}

static double context(const struct inspect_options *options, const struct drllm_gguf *gguf) {
    uint64_t trained = 0;
    get_shape(gguf, "context_length", &trained);
    return options->context == 0 ? (double)trained : (double)options->context;
}

/* ---- Text ---- */

static void print_tensor(const struct drllm_gguf_tensor *tensor) {
    char shape[96];
    int n = snprintf(shape, sizeof shape, "%zu", tensor->dims[0]);
    for (size_t i = 1; i < tensor->n_dims; i++) {
        n += snprintf(shape + n, sizeof shape - (size_t)n, " x %zu", tensor->dims[i]);
    }
    char bytes[16];
    printf("  %-8s %16s %10s  ", drllm_format_name(tensor->type), shape,
           tensor->data == NULL ? "?" : format_bytes((double)tensor->size, bytes));
    print_plain(stdout, tensor->name.data, tensor->name.size);
    printf("\n");
}

/* routers: NULL unless the file holds some, of which the bare entries and tensors say little. */
static void print_text(const struct inspect_options *options, const struct mapped_gguf *mapped,
                       const struct drllm_router_file *routers) {
    const struct drllm_gguf *gguf = &mapped->gguf;
    char bytes[3][16];
    printf("%s: GGUF version %u, %s, %zu entries, %zu tensors\n", options->path, (unsigned)gguf->version,
           format_bytes((double)mapped->file.size, bytes[0]), gguf->n_entries, gguf->n_tensors);
    if (routers != NULL) {
        printf("\nrouters\n");
        router_info_print(routers);
        if (!options->all) {
            return;
        }
    }
    printf("\nmetadata\n");
    for (size_t i = 0; i < gguf->n_entries; i++) {
        print_entry(options, gguf, &gguf->entries[i]);
    }
    if (gguf->n_tensors == 0) {
        return;
    }
    printf("\ntensors\n");
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        print_tensor(&gguf->tensors[i]);
    }
    struct sums sums = sum_types(gguf);
    printf("\ntypes\n");
    for (size_t i = 0; i < sums.n_types; i++) {
        const struct type_sum *sum = &sums.types[i];
        printf("  %-8s %5zu tensors %14" PRIu64 " weights %10s\n", drllm_format_name(sum->type), sum->tensors,
               sum->weights, format_bytes((double)sum->bytes, bytes[0]));
    }
    printf("  %-8s %5zu tensors %14" PRIu64 " weights %10s\n", "sum", gguf->n_tensors, sums.weights,
           format_bytes((double)sums.bytes, bytes[0]));
    const double kv = kv_bytes(options, gguf) * context(options, gguf);
    if (kv > 0.0) {
        printf("\nmemory at a context of %.0f: %s of weights and up to %s of keys and values, %s\n",
               context(options, gguf), format_bytes((double)sums.bytes, bytes[0]), format_bytes(kv, bytes[1]),
               format_bytes((double)sums.bytes + kv, bytes[2]));
    }
    free(sums.types);
}

/* ---- JSON ---- */

static cJSON *scalar_json(uint32_t type, const uint8_t *data) {
    char text[40];
    format_scalar(type, data, text);
    return strpbrk(text, "in") != NULL ? cJSON_CreateNull() : cJSON_CreateRaw(text); /* inf, nan */
}

static cJSON *entry_json(const struct inspect_options *options, const struct drllm_gguf *gguf,
                         const struct drllm_gguf_entry *entry) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "key", json_text(entry->key.data, entry->key.size));
    cJSON_AddStringToObject(json, "type", drllm_gguf_type_name(entry->type));
    if (entry->type == DRLLM_GGUF_STRING) {
        const struct drllm_string string = entry_string(gguf, entry);
        cJSON_AddItemToObject(json, "value", json_text(string.data, string.size));
    } else if (entry->type != DRLLM_GGUF_ARRAY) {
        cJSON_AddItemToObject(json, "value", scalar_json(entry->type, entry->data));
    } else {
        cJSON_AddStringToObject(json, "item_type", drllm_gguf_type_name(entry->item_type));
        cJSON_AddNumberToObject(json, "count", (double)entry->count);
        cJSON *items = cJSON_AddArrayToObject(json, "value");
        size_t position = 0;
        for (size_t i = 0; i < shown_items(options, entry); i++) {
            struct drllm_string string;
            if (entry->item_type != DRLLM_GGUF_STRING) {
                cJSON_AddItemToArray(items,
                                     scalar_json(entry->item_type, entry->data + i * type_size(entry->item_type)));
            } else if (drllm_gguf_next_string(entry, &position, &string)) {
                cJSON_AddItemToArray(items, json_text(string.data, string.size));
            }
        }
        cJSON_AddBoolToObject(json, "abbreviated", shown_items(options, entry) < entry->count);
    }
    return json;
}

static cJSON *tensor_json(const struct drllm_gguf_tensor *tensor) {
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "name", json_text(tensor->name.data, tensor->name.size));
    cJSON_AddStringToObject(json, "type", drllm_format_name(tensor->type));
    cJSON *shape = cJSON_AddArrayToObject(json, "shape");
    for (size_t i = 0; i < tensor->n_dims; i++) {
        cJSON_AddItemToArray(shape, json_u64(tensor->dims[i]));
    }
    cJSON_AddItemToObject(json, "offset", json_u64(tensor->offset));
    cJSON_AddItemToObject(json, "bytes", tensor->data == NULL ? cJSON_CreateNull() : json_u64(tensor->size));
    return json;
}

static int print_json(const struct command *command, const struct inspect_options *options,
                      const struct mapped_gguf *mapped, const struct drllm_router_file *routers) {
    const struct drllm_gguf *gguf = &mapped->gguf;
    cJSON *json = cJSON_CreateObject();
    cJSON_AddItemToObject(json, "file", json_text(options->path, strlen(options->path)));
    cJSON_AddItemToObject(json, "size", json_u64(mapped->file.size));
    cJSON_AddNumberToObject(json, "version", gguf->version);
    if (routers != NULL) {
        cJSON_AddItemToObject(json, "routers", router_info_json(routers));
    }
    cJSON *metadata = cJSON_AddArrayToObject(json, "metadata");
    for (size_t i = 0; i < gguf->n_entries; i++) {
        cJSON_AddItemToArray(metadata, entry_json(options, gguf, &gguf->entries[i]));
    }
    cJSON *tensors = cJSON_AddArrayToObject(json, "tensors");
    for (size_t i = 0; i < gguf->n_tensors; i++) {
        cJSON_AddItemToArray(tensors, tensor_json(&gguf->tensors[i]));
    }
    struct sums sums = sum_types(gguf);
    cJSON *types = cJSON_AddArrayToObject(json, "types");
    for (size_t i = 0; i < sums.n_types; i++) {
        cJSON *type = cJSON_CreateObject();
        cJSON_AddStringToObject(type, "type", drllm_format_name(sums.types[i].type));
        cJSON_AddNumberToObject(type, "tensors", (double)sums.types[i].tensors);
        cJSON_AddItemToObject(type, "weights", json_u64(sums.types[i].weights));
        cJSON_AddItemToObject(type, "bytes", json_u64(sums.types[i].bytes));
        cJSON_AddItemToArray(types, type);
    }
    cJSON *memory = cJSON_AddObjectToObject(json, "memory");
    cJSON_AddNumberToObject(memory, "n_context", context(options, gguf));
    cJSON_AddItemToObject(memory, "weight_bytes", json_u64(sums.bytes));
    cJSON_AddNumberToObject(memory, "kv_bytes", kv_bytes(options, gguf) * context(options, gguf));
    free(sums.types);
    return json_print(command, json, false);
}

/* ---- */

static int inspect(const struct command *command, const struct inspect_options *options) {
    struct mapped_gguf mapped = {0};
    struct drllm_router_file file;
    const struct drllm_router_file *routers = NULL;
    int exit_code = mapped_open(command, options->path, &mapped);
    if (exit_code == TOOL_OK && is_router_file(&mapped)) {
        exit_code = router_info_open(command, options->path, &mapped, &file);
        routers = exit_code == TOOL_OK ? &file : NULL;
    }
    if (exit_code == TOOL_OK && options->json) {
        exit_code = print_json(command, options, &mapped, routers);
    } else if (exit_code == TOOL_OK) {
        print_text(options, &mapped, routers);
        exit_code = flush_output(command);
    }
    if (routers != NULL) {
        drllm_router_file_close(&file);
    }
    mapped_close(&mapped);
    return exit_code;
}

int inspect_main(const struct command *command, int argc, char **argv) {
    struct inspect_options options = {.context = 2048};
    const struct option table[] = {
        OPT_TEXT('m', "model", &options.path, "FILE", "the same as FILE"),
        OPT_INTEGER('c', "ctx-size", &options.context, "N", 0, 1 << 30,
                    "context to estimate memory for; 0: as trained"),
        KV_OPTION(&options),
        OPT_FLAG('a', "all", &options.all, "all items of arrays, all of long texts, and the tensors of routers"),
        OPT_FLAG(0, "json", &options.json, "print one JSON object"),
        OPT_FLAG(0, "verify", &options.verify, "check all checksums of a packed model; reads the whole file"),
    };
    struct text_list operands = {NULL, 0};
    int exit_code;
    if (options_parse(command, table, OPTION_COUNT(table), argc, argv, &operands, &exit_code)) {
        if (operands.count + (options.path != NULL) != 1) {
            exit_code = usage_error(command, "one file must be named");
        } else {
            options.path = options.path != NULL ? options.path : operands.items[0];
            exit_code = is_packed_model(options.path)
                            ? inspect_packed(command, options.path, options.verify, options.json)
                            : inspect(command, &options);
        }
    }
    free((void *)operands.items);
    options_release(table, OPTION_COUNT(table));
    return exit_code;
}
