/* The instance and, for tests, the validation layers: TD_VK_VALIDATION=core, sync or gpu turns on
 * VK_LAYER_KHRONOS_validation with that check. Every warning or error is printed and counted, and
 * td_vk_instance_destroy aborts when there were any: leaked objects are reported as late as
 * vkDestroyDevice, and a test must not pass with them. */
#include "kernels/vulkan/vk.h"

#include "base/check.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static VKAPI_ATTR VkBool32 VKAPI_CALL on_message(VkDebugUtilsMessageSeverityFlagBitsEXT severity,
                                                 VkDebugUtilsMessageTypeFlagsEXT types,
                                                 const VkDebugUtilsMessengerCallbackDataEXT *data,
                                                 void *context)
{
    (void)severity;
    (void)types;
    td_vk_instance *instance = context;
    atomic_fetch_add(&instance->n_messages, 1);
    fprintf(stderr, "vulkan validation: %s\n", data->pMessage);
    return VK_FALSE;
}

/* The feature TD_VK_VALIDATION asks for. */
static bool find_validation(const char *text, VkValidationFeatureEnableEXT *feature,
                            bool *has_feature, td_err *err)
{
    *has_feature = true;
    if (!strcmp(text, "core"))
        *has_feature = false;
    else if (!strcmp(text, "sync"))
        *feature = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
    else if (!strcmp(text, "gpu"))
        *feature = VK_VALIDATION_FEATURE_ENABLE_GPU_ASSISTED_EXT;
    else
        return td_err_set(err, TD_E_USAGE, "TD_VK_VALIDATION=%.32s: allowed are core, sync, gpu",
                          text);
    return true;
}

static void disable_core_checks(VkValidationFeaturesEXT *features)
{
    /* The layer's documentation asks not to run them beside GPU-assisted validation. */
    static const VkValidationFeatureDisableEXT disabled[] = {
        VK_VALIDATION_FEATURE_DISABLE_CORE_CHECKS_EXT};
    features->disabledValidationFeatureCount = 1;
    features->pDisabledValidationFeatures = disabled;
}

bool td_vk_instance_create(td_vk_instance *instance, td_err *err)
{
    *instance = (td_vk_instance){0};
    const char *validation = getenv("TD_VK_VALIDATION");
    bool has_validation = validation && *validation, has_feature = false;
    VkValidationFeatureEnableEXT feature = 0;
    if (has_validation && !find_validation(validation, &feature, &has_feature, err))
        return false;

    instance->is_sync_checked =
        has_feature && feature == VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT;
    VkDebugUtilsMessengerCreateInfoEXT messenger = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                           VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT |
                       VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = on_message,
        .pUserData = instance,
    };
    VkValidationFeaturesEXT features = {
        .sType = VK_STRUCTURE_TYPE_VALIDATION_FEATURES_EXT,
        .pNext = &messenger, /* for what comes before the messenger exists and after it is gone */
        .enabledValidationFeatureCount = has_feature,
        .pEnabledValidationFeatures = &feature,
    };
    if (feature == VK_VALIDATION_FEATURE_ENABLE_GPU_ASSISTED_EXT && has_feature)
        disable_core_checks(&features);
    const char *layers[] = {"VK_LAYER_KHRONOS_validation"};
    const char *extensions[] = {VK_EXT_DEBUG_UTILS_EXTENSION_NAME,
                                VK_EXT_VALIDATION_FEATURES_EXTENSION_NAME};
    VkInstanceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .pNext = has_validation ? &features : NULL,
        .pApplicationInfo = &(VkApplicationInfo){.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                                                 .pApplicationName = "tandem",
                                                 .apiVersion = VK_API_VERSION_1_3},
        .enabledLayerCount = has_validation ? TD_COUNT(layers) : 0,
        .ppEnabledLayerNames = layers,
        .enabledExtensionCount = has_validation ? TD_COUNT(extensions) : 0,
        .ppEnabledExtensionNames = extensions,
    };
    td_vk_loaded_before();
    VkResult result = vkCreateInstance(&info, NULL, &instance->handle);
    if (result != VK_SUCCESS) {
        instance->handle = VK_NULL_HANDLE;
        return td_err_set(err, TD_E_UNAVAILABLE, "no Vulkan driver can be used (%s)",
                          td_vk_result_name(result));
    }
    if (has_validation) {
        PFN_vkCreateDebugUtilsMessengerEXT create =
            (PFN_vkCreateDebugUtilsMessengerEXT)vkGetInstanceProcAddr(
                instance->handle, "vkCreateDebugUtilsMessengerEXT");
        create(instance->handle, &messenger, NULL, &instance->messenger);
        instance->set_name = (PFN_vkSetDebugUtilsObjectNameEXT)vkGetInstanceProcAddr(
            instance->handle, "vkSetDebugUtilsObjectNameEXT");
    }
    return true;
}

void td_vk_instance_destroy(td_vk_instance *instance)
{
    if (!instance->handle)
        return;
    if (instance->messenger) {
        PFN_vkDestroyDebugUtilsMessengerEXT destroy =
            (PFN_vkDestroyDebugUtilsMessengerEXT)vkGetInstanceProcAddr(
                instance->handle, "vkDestroyDebugUtilsMessengerEXT");
        destroy(instance->handle, instance->messenger, NULL);
    }
    td_vk_keep_loaded();
    vkDestroyInstance(instance->handle, NULL);
    instance->handle = VK_NULL_HANDLE;
    TD_ASSERT(atomic_load(&instance->n_messages) == 0); /* printed above */
}

const char *td_vk_result_name(VkResult result)
{
    static const struct {
        VkResult result;
        const char *name;
    } names[] = {
        {VK_SUCCESS, "success"},
        {VK_TIMEOUT, "timeout"},
        {VK_ERROR_OUT_OF_HOST_MEMORY, "out of host memory"},
        {VK_ERROR_OUT_OF_DEVICE_MEMORY, "out of device memory"},
        {VK_ERROR_OUT_OF_POOL_MEMORY, "out of pool memory"},
        {VK_ERROR_INITIALIZATION_FAILED, "initialization failed"},
        {VK_ERROR_DEVICE_LOST, "device lost"},
        {VK_ERROR_MEMORY_MAP_FAILED, "memory map failed"},
        {VK_ERROR_LAYER_NOT_PRESENT, "a layer is not present"},
        {VK_ERROR_EXTENSION_NOT_PRESENT, "an extension is not present"},
        {VK_ERROR_FEATURE_NOT_PRESENT, "a feature is not present"},
        {VK_ERROR_INCOMPATIBLE_DRIVER, "no compatible driver"},
        {VK_ERROR_TOO_MANY_OBJECTS, "too many objects"},
        {VK_ERROR_FRAGMENTATION, "fragmentation"},
    };
    for (size_t i = 0; i < TD_COUNT(names); i++)
        if (names[i].result == result)
            return names[i].name;
    return "unknown Vulkan error";
}
