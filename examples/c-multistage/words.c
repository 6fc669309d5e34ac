#include <ctype.h>
#include <stdio.h>

int main(void) {
    unsigned long words = 0;
    int inside = 0, c;
    while ((c = getchar()) != EOF) {
        if (isspace(c)) {
            inside = 0;
        } else if (!inside) {
            inside = 1;
            words++;
        }
    }
    printf("%lu words\n", words);
    return 0;
}
