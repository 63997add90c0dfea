/* Values on their way through: read by the one, written by the other, looked at by neither. As deep
 * as a document may be (TD_JSON_DEPTH_MAX), which bounds the recursion. */
#include "base/check.h"
#include "base/json.h"
#include "base/json_writer.h"
#include "base/text.h"

#include <jansson.h>
#include <stdio.h>

static void write_node(td_json_writer *w, const json_t *node)
{
    const char *key;
    const json_t *item;
    size_t i;
    switch (json_typeof(node)) {
    case JSON_OBJECT:
        td_json_begin_object(w);
        json_object_foreach((json_t *)(uintptr_t)node, key, item)
        {
            td_json_write_key(w, key);
            write_node(w, item);
        }
        td_json_end_object(w);
        break;
    case JSON_ARRAY:
        td_json_begin_array(w);
        json_array_foreach(node, i, item) write_node(w, item);
        td_json_end_array(w);
        break;
    case JSON_STRING:
        td_json_write_bytes(w, json_string_value(node), json_string_length(node));
        break;
    case JSON_INTEGER:
        td_json_write_i64(w, json_integer_value(node));
        break;
    case JSON_REAL:
        td_json_write_double(w, json_real_value(node));
        break;
    case JSON_NULL:
        td_json_write_null(w);
        break;
    default:
        td_json_write_bool(w, json_is_true(node));
    }
}

void td_json_copy(const td_json_object *object, const char *key, td_json_writer *w)
{
    const json_t *node = json_object_get(object->node, key);
    TD_ASSERT(node);
    write_node(w, node);
}

const char *td_json_get_text(const td_json_object *object, const char *key, char *room)
{
    const json_t *node = json_object_get(object->node, key);
    switch (node ? json_typeof(node) : JSON_NULL) {
    case JSON_STRING:
        return json_string_value(node);
    case JSON_INTEGER:
        snprintf(room, TD_TEXT_DOUBLE_MAX, "%lld", (long long)json_integer_value(node));
        return room;
    case JSON_REAL:
        td_text_write_double(json_real_value(node), room);
        return room;
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    default:
        return NULL;
    }
}
