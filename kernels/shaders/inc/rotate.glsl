/* The rotation of a head (device.h), by 64 lanes, in a shared array TD_ROTATE_ROW that the includer
 * names: Walsh-Hadamard transforms of groups of columns, each the largest power of two that fits
 * into what is left of the head. A column i takes part in the stage of pairs h apart where the 2 h
 * columns around it are whole; so of 96 columns the first 64 and the last 32 are a group.
 * Law 1: a head's order of additions is fixed, and it is all one workgroup's. */

/* 1 / sqrt(size), size a power of two, the same in every shader. */
float td_rotation_scale(uint size)
{
    int n = findMSB(size);
    float root = uintBitsToFloat(uint(127 - n / 2) << 23);
    precise float odd = root * 0.70710678;
    return (n & 1) != 0 ? odd : root;
}

/* All lanes, t being this one's number. Begins and ends with a barrier. */
void td_rotate(uint t, uint n)
{
    barrier();
    for (uint h = 1u; 2u * h <= n; h *= 2u) {
        for (uint j = t; j < n / 2u; j += 64u) {
            uint i = j / h * (2u * h) + j % h;
            if ((i | (2u * h - 1u)) >= n)
                continue;
            precise float a = TD_ROTATE_ROW[i], b = TD_ROTATE_ROW[i + h];
            precise float sum = a + b, difference = a - b;
            TD_ROTATE_ROW[i] = sum;
            TD_ROTATE_ROW[i + h] = difference;
        }
        barrier();
    }
    for (uint i = t; i < n; i += 64u) {
        uint size = 1u;
        while ((i | (2u * size - 1u)) < n)
            size *= 2u;
        precise float scaled = TD_ROTATE_ROW[i] * td_rotation_scale(size);
        TD_ROTATE_ROW[i] = scaled;
    }
    barrier();
}
