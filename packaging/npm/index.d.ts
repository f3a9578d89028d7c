/** Settings of the mixed KV cache; what is not given takes its default (docs/settings.md). */
export interface Settings {
    /** "balanced" (default), "quality" or "small". */
    preset?: "balanced" | "quality" | "small";
    /** Newest rows of each sequence that stay in FP16. */
    window?: number;
    /** First rows of each sequence that stay in FP16. */
    sinks?: number;
    /** Storage of K rows that have left the window: "f16" or a cold format such as "q4". */
    k?: string;
    /** The same for V. */
    v?: string;
    /** Other formats for some layers, such as "0-1,-1:q8". */
    layers?: string;
    /** Budget in bits per value; needs calibration. */
    bits?: number;
    /** File written by `mixed-kv-eval --calibrate`. */
    calibration?: string;
    /** MiB that all caches of the process may take when full; 0: no limit. */
    limitMb?: number;
    /** MiB that all caches together may take; rows stay exact while they fit. */
    budgetMb?: number;
    /** Formats that pages step down under a budget. */
    ladder?: string;
    /** 0, 1 or 2: how much the plugin says through llama.cpp's log. */
    verbose?: 0 | 1 | 2;
}

/** Absolute path of the plugin, the value of GGML_BACKEND_PATH. */
export const path: string;

/**
 * Sets GGML_BACKEND_PATH and the given settings in the environment, which hosts read once, when they load their
 * backends: call it before node-llama-cpp is imported. Throws when it cannot work here.
 *
 * @param settings settings of caches created from now on
 * @param environment where to set them; default: process.env
 * @returns the path of the plugin
 */
export function enable(settings?: Settings, environment?: Record<string, string | undefined>): string;
