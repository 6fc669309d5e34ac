FROM a
RUN echo \


  b \
# c
  c
RUN \
  d\ \